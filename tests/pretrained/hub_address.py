"""Local servers in the place of the Hugging Face Hub."""

from huggingface_hub import constants, file_download


def set_hub(monkeypatch, url):
    """Let `huggingface_hub`, which reads HF_ENDPOINT at import, use another server."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # Where version 0 has it.
    monkeypatch.setattr(
        file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False
    )
