"""SAEs in repositories of the Hugging Face hub, by the package huggingface_hub (extra `hub`)."""

from saefast.hub.download import download_sae
from saefast.hub.upload import push_to_hub

__all__ = ["download_sae", "push_to_hub"]
