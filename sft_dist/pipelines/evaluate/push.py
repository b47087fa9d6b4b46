"""Exported folder -> a repository of the Hugging Face hub, private unless it exists already."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from sft_dist.core.errors import UserError


def push(folder: Path, repository: str) -> str:
    """Upload a model folder as one commit; return its address.

    Args:
        folder: The exported model with its card.
        repository: OWNER/NAME.

    Raises:
        UserError: The name is none, the hub cannot be reached, or it refuses; the folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    # of the HTTP client that the hub's library was built on; OSError: offline mode
    network = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    remedy = f"the model lies in {folder}; repeat with --push {repository}"
    if repository.count("/") != 1:
        raise UserError(f"--push {repository} names no repository, so nothing was uploaded; give OWNER/NAME")
    api = HfApi()
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload model")
    except (LocalTokenNotFoundError, HFValidationError) as error:
        raise UserError(
            f"nothing was uploaded, because the hub needs a token and a name: {_line(error)}; {remedy}"
        ) from None
    except HfHubHTTPError as error:
        raise UserError(
            f"the hub refused {repository} ({_line(error)}), so it is not uploaded; log in with a token that may write there "
            f"(hf auth login), or name another; {remedy}"
        ) from None
    except network as error:
        raise UserError(
            f"the hub cannot be reached ({_line(error)}), so nothing was uploaded; {remedy}"
        ) from None
    return f"https://huggingface.co/{made.repo_id}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
