"""An exported model elsewhere: as GGUF, by llama.cpp's converter, and on the Hugging Face Hub."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from cwdpo.errors import ModelError, RunError, one_line
from cwdpo.outputs import LIST, OwnedFolder

__all__ = ["gguf_converter", "push", "require_pushable", "write_gguf"]

_CONVERTERS = ("convert_hf_to_gguf.py", "convert_hf_to_gguf", "convert-hf-to-gguf")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def gguf_converter() -> str:
    """Return llama.cpp's converter.

    Raises:
        RunError: It is not installed.
    """
    found = next((path for name in _CONVERTERS if (path := shutil.which(name))), None)
    if found is None:
        raise RunError(
            f"--gguf: llama.cpp's converter {_CONVERTERS[0]} is not on the PATH; install it from "
            "https://github.com/ggml-org/llama.cpp, or leave --gguf out"
        )
    return found


def write_gguf(folder: Path, converter: str) -> list[Path]:
    """Convert an exported model: the language model, and the vision tower as `mmproj`, each a file in its folder.

    Raises:
        ModelError: The converter fails, for instance on an architecture that it does not know.
    """
    written: list[Path] = []
    with OwnedFolder(folder, "export") as owned:
        for name, more in (("model.gguf", []), ("mmproj.gguf", ["--mmproj"])):
            path = owned.folder / name
            draft = path.with_name(f".{name}.0.tmp")
            owned.claim(path, grows=False)
            command = [converter, str(owned.folder), "--outfile", str(draft), "--outtype", "auto", *more]
            ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if ended.returncode != 0 or not draft.is_file():
                last = one_line((ended.stderr or ended.stdout).strip().rpartition("\n")[2], 200)
                raise ModelError(
                    f"{folder}: {Path(converter).name} failed on {name}: {last}; the model itself is exported"
                )
            owned.wrote(path, draft)
            draft.replace(path)
            written.append(path)
    return written


def require_pushable(repository: str) -> None:
    """Find out before any work whether a new repository of this name can be made on the hub.

    Raises:
        RunError: The name is no `owner/name`, nobody is logged in, or there is such a repository already.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not _REPO.fullmatch(repository):
        raise RunError(f"--push {one_line(repository, 80)}: must be OWNER/NAME")
    try:
        HfApi().whoami()
        there = HfApi().repo_exists(repository)
    except LocalTokenNotFoundError:
        raise RunError(f"--push {repository}: nobody is logged in; log in with `hf auth login`") from None
    except (HfHubHTTPError, OSError) as error:
        raise RunError(f"--push {repository}: the hub refuses: {one_line(error, 160)}") from None
    if there:
        raise RunError(f"--push {repository}: is there already, and is not overwritten; choose another name")


def push(folder: Path, repository: str) -> str:
    """Upload an exported model to a new private repository; return its address.

    Raises:
        RunError: The hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        address = api.create_repo(repository, private=True, exist_ok=False)
        api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=[LIST, ".*"], commit_message="Model")
    except (HfHubHTTPError, OSError) as error:
        raise RunError(f"--push {repository}: {one_line(error, 160)}; the model itself is in {folder}") from None
    return str(address)
