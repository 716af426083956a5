"""`python -m rqlab`: the command line, and the child processes of process-isolated workers."""

import sys


def main() -> None:
    """Run the command line, or serve as a child process (which must not wait for the command line's imports)."""
    if len(sys.argv) == 3 and sys.argv[1] == "_child":
        from rqlab.executors.child import main as serve

        serve(int(sys.argv[2]))
    elif len(sys.argv) == 3 and sys.argv[1] == "_explore":
        from rqlab.exploration.child import main as call

        call(int(sys.argv[2]))
    else:
        from rqlab.cli import main as run

        run()


if __name__ == "__main__":
    main()
