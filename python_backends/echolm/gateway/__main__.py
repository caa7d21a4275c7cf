"""``python -m echolm.gateway``: the gateway alone, as ``echolm serve`` starts it."""

from echolm.gateway.server import main

if __name__ == "__main__":
    main()
