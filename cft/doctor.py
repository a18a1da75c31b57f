"""Look a model over before it is trained: `python -m cft.doctor [GROUP=CHOICE ...] [KEY=VALUE ...]`.

Takes the same overrides as cft.run and reports how that job would embed: the contract, a tokenised example, which
layers are trained, how texts are batched, how much memory is needed. It also tests whether a text has the same
embedding alone, in a batch, and padded with the model's own attention.

With `served=URL` it asks instead whether a server of embeddings gives an embedder's own vectors: `python -m cft.doctor
served=http://localhost:8080 run=RUN`.
"""

import re
import sys
from dataclasses import dataclass
from typing import Annotated

from cft.config.command_line import CommandLine, check_options
from cft.system.errors import UserError
from cft.system.overrides import overrides, shell_word


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Look a model over before it is trained: how it embeds, what it needs, and whether batches are exact."""

    overrides: Annotated[
        list[str], "as for cft.run (whose --help lists all), such as model=phi2; with served= only model= and prompt="
    ]
    served: Annotated[
        str,
        "a server's address, such as http://localhost:8080: are its vectors those of run=, model= or path=? Its key "
        "is read from the variable CFT_SERVED_KEY",
    ] = ""
    served_model: Annotated[str, "with served=: the name that the server has for the model, if it wants it"] = ""
    run: Annotated[str, "with served=: the embedder, as cft.encode takes it"] = ""
    path: Annotated[str, "with served=: or a folder or .gguf file, as cft.encode takes it"] = ""
    model_path: Annotated[
        str, "with served=: where the embedder's base model is now, if that was moved; its content is checked"
    ] = ""

    def __post_init__(self) -> None:
        """Refuse what goes with `served` alone, and what does not go with it."""
        check_options(self)
        names = ("served_model", "run", "path", "model_path")
        only = {name: getattr(self, name) for name in names if getattr(self, name)}
        if only and not self.served:
            raise UserError(f"{overrides(only)}: goes with served=URL alone; a job's model is given by model=")
        if self.served:
            odd = [word for word in self.overrides if word.partition("=")[0] not in ("model", "prompt")]
            if odd:
                raise UserError(f"{shell_word(odd[0])}: does not go with served=; run=, model=, path= and prompt= do")

    @property
    def embedder(self) -> dict[str, str]:
        """Which embedder a server is compared with, as `load_embedder` takes it."""
        words = dict(re.sub(r"=(['\"])(.*)\1$", r"=\2", word, flags=re.DOTALL).split("=", 1) for word in self.overrides)
        return {"run": self.run, "path": self.path, "model_path": self.model_path, **words}


COMMAND = CommandLine("cft.doctor", DoctorOptions, example="model=smollm2 data=files data.train=triplets.csv")


def main() -> None:
    """Run the command line; the status is 1 if a check failed."""
    COMMAND.run(_examine, "nothing was changed")


def _examine(options: DoctorOptions) -> None:
    if options.served:
        from cft.deploy.served import check_served

        text, same = check_served(options.served, options.embedder, served_model=options.served_model)
        sys.stdout.write(text + "\n")
        if not same:
            sys.exit(1)
        return
    from cft.config.compose import compose_config
    from cft.job.doctor import FAILED_STATUS, examine

    text, healthy = examine(compose_config(options.overrides))
    sys.stdout.write(text + "\n")
    if not healthy:
        sys.exit(FAILED_STATUS)


if __name__ == "__main__":
    main()
