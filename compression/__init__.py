"""Floor 2: a policy applied to a model."""

import logging

# Importing torchao makes torch log a deprecation that is none of the user's business.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
