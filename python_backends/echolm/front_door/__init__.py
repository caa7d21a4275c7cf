"""The models ``echolm`` and ``echolm_stream``, a Triton backend in C++, and how it is built."""
