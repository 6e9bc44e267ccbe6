"""Models on the Hugging Face hub: fetch once, pinned by commit."""

from __future__ import annotations

from pathlib import Path

from align.errors import EnvironmentProblem, RecipeError

# Never *.bin, *.pt or *.py: nothing that loading could execute reaches the disk.
ALLOWED_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "*.jinja",
)
# The same weights in Mistral's own form, beside those that everything here reads.
IGNORED_FILES = ("consolidated*",)
_LOCAL_HINT = "Download it where there is a network, and give the folder with path: instead of hub_id:."


def fetch_model(hub_id: str, revision: str, *, weights: bool = True) -> tuple[Path, str]:
    """The local folder of a model of the hub, and its commit.

    The first call fetches it into the hub's cache, later ones find it there. Nothing is sent but the request. With
    HF_HUB_OFFLINE=1 only the cache is searched.

    Args:
        hub_id: such as `Qwen/Qwen3-0.6B-Base`.
        revision: branch, tag or commit.
        weights: False to fetch none, as a plan needs the sizes only. Those that the cache has are in the folder all the same.
    Raises:
        RecipeError: if the hub says that the model or the revision does not exist, or the id cannot be one.
        EnvironmentProblem: if it can neither be fetched nor found in the cache.
    """
    try:
        import httpx
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise EnvironmentProblem(f"{hub_id}: huggingface_hub cannot be imported ({error})", hint=_LOCAL_HINT) from error
    try:
        folder = Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=list(ALLOWED_FILES),
                ignore_patterns=[*IGNORED_FILES, *([] if weights else ["*.safetensors"])],
            )
        )
    # Narrow errors first: a gated repository is also a RepositoryNotFoundError, and all but one are OSErrors.
    except GatedRepoError as error:
        hint = "Accept its licence on its page, and log in with: hf auth login"
        raise EnvironmentProblem(f"model {hub_id}: access must be granted first", hint=hint) from error
    except HFValidationError as error:
        raise RecipeError(f"model {hub_id}: is not a hub id ({error})", hint="hub_id is owner/name.") from error
    except RevisionNotFoundError as error:
        raise RecipeError(f"model {hub_id}: has no revision {revision!r}", hint="Give a branch, tag or commit.") from error
    except LocalEntryNotFoundError as error:
        raise EnvironmentProblem(
            f"model {hub_id}, revision {revision}: the hub cannot be reached, or is set to offline (HF_HUB_OFFLINE), "
            "and the cache has no copy",
            hint=_LOCAL_HINT,
        ) from error
    except RepositoryNotFoundError as error:
        raise RecipeError(f"model {hub_id}: the hub has no such model, or it is private", hint="Correct hub_id:.") from error
    except (OSError, httpx.HTTPError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise EnvironmentProblem(f"model {hub_id}: cannot be fetched: {reason}", hint=_LOCAL_HINT) from error
    return folder, folder.name  # snapshots/<commit> in the hub's cache
