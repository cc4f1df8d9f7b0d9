"""Names that datasets' own tests import from ``fixtures.hub``."""

import os

CI_HUB_USER = "__DUMMY_TRANSFORMERS_USER__"
CI_HUB_USER_TOKEN = "hf_conformance"
CI_HUB_ENDPOINT = os.environ["HF_ENDPOINT"]
