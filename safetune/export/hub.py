"""An export, pushed to the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi


def push_export(folder: Path, repository: str, private: bool = False) -> str:
    """Create the repository where it is not there, and commit the folder to it; returns the commit's address.

    The token is the one that `hf auth login` or HF_TOKEN gives. The hub checks the card's front matter first.
    """
    api = HfApi()
    name = api.create_repo(repository, private=private, exist_ok=True).repo_id
    commit = api.upload_folder(
        repo_id=name, folder_path=folder, commit_message="Export by safetune", ignore_patterns=[".*"]
    )
    return str(commit.commit_url)
