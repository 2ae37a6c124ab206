"""`python -m inference_worker`."""

from inference_worker.app import main

if __name__ == "__main__":
    raise SystemExit(main())
