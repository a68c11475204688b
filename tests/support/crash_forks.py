"""A process with an open App and a worker at work that forks children, which use the App themselves."""

import multiprocessing
import os
import sys
from pathlib import Path

import crash_oracle
from crash_processes import eventually
from crash_program import Program, call, say

from action_retrier import MutationCtx

CHILDREN = 3


class ForkingProgram(Program):
    """A program whose App is used before and after a fork, by the parent and by its children."""

    def __init__(self, database: str, folder: Path) -> None:
        super().__init__(database, folder)

        @self.app.mutation(name="note")
        def note(ctx: MutationCtx, text: str) -> str:
            ctx.db.execute(self.database.sql("INSERT INTO orders (run_id) VALUES (?)"), (text,))
            return text

        @self.app.action(name="echo")
        def echo(text: str) -> str:
            return text

    def use(self, queue: str) -> None:
        """Use everything that has threads or connections: mutations, actions, starts, a worker."""
        assert self.app.run_mutation_sync("note", {"text": queue}) == queue
        assert self.app.run_action_sync("echo", {"text": queue}) == queue
        run_ids = self.start([call("return", queue=queue), call("raise", "return", queue=queue, action="work_sync")])
        run_ids.append(self.start_in_own_transaction("return", queue=queue))
        for run_id in run_ids:
            say("started", run_id)
        eventually(lambda: crash_oracle.is_complete(self.database, run_ids), what=f"the runs of {queue}")

    def be_a_child(self, queue: str) -> None:
        """Use everything, with a worker of its own."""
        with self.app.worker(queues=[queue]):
            self.use(queue)

    def fork(self, queue: str, how: str, end: str) -> None:
        """Run a child, and wait for its end."""
        if how == "multiprocessing":
            process = multiprocessing.get_context("fork").Process(target=self.be_a_child, args=(queue,))
            process.start()
            process.join()
            code = process.exitcode
        else:
            pid = os.fork()
            if pid == 0:
                self.be_a_child(queue)
                if end == "exit":
                    sys.exit(0)  # through everything that the parent has entered
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 0, f"a forked child ended with {code}"


def main() -> None:
    """Fork while everything is open and has been used; then go on using it."""
    database, how, end = sys.argv[1:]
    program = ForkingProgram(database, Path.cwd())
    with program.app, program.app.worker(queues=["parent"]):
        program.use("parent")
        for number in range(CHILDREN):
            program.fork(f"child-{number}", how, end)
        program.use("parent")


if __name__ == "__main__":
    main()
