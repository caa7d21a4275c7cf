"""Runs an engine in a process of its own, and talks to it over a socket.

OpenVINO's ``step()`` keeps Python's global lock for a whole forward pass. In the same process
as the Triton model it would let one request in per step at most, and no answer out meanwhile.
A process of its own costs one message per step instead; and when it dies, of memory for
example, the model does not: requests in flight fail, and a new process takes over.

vLLM and TensorRT-LLM start processes of their own through ``sys.executable``, which in Triton's
stub, which embeds Python, is no Python. They also want another environment than the stub, which
may need numpy 1: ``python`` names the interpreter that has them. What the worker imports of
EchoLM therefore needs nothing but the standard library, numpy and psutil.

::

    WorkerEngine (parent)                        worker process (child)
      submit, cancel ─▶ writer thread ─ socket ─▶ mode "stepper": Stepper.add, cancel
                                                  mode "async": AsyncBackend.generate, abort
      on_chunk  ◀────── reader thread ◀ socket ── one message per step or turn of the event loop
"""
