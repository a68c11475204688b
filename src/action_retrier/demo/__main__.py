"""`python -m action_retrier.demo`: the demo without the command line around it."""

import argparse
import signal
import sys

from .run import run_demo


def main() -> int:
    """Run the demo as the arguments say."""
    parser = argparse.ArgumentParser(
        prog="python -m action_retrier.demo", description="Deliver several hundred webhooks against all odds."
    )
    parser.add_argument("--keep", action="store_true", help="leave the database to be looked at")
    parser.add_argument("--seed", type=int, default=1, help="decides which deliveries fail, and how")
    parser.add_argument("--json", action="store_true", help="print the verdict as one JSON object")
    parser.add_argument("--database", help="use this database instead of a temporary one, and keep it")
    options = parser.parse_args()
    try:
        return run_demo(keep=options.keep, seed=options.seed, json=options.json, database=options.database)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
