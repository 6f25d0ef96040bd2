"""relpos in models of Hugging Face transformers: one line, same weights, same outputs, memory linear in the length.

from relpos.integrations.transformers import accelerate, restore

print(accelerate(model))   # what changed, what did not, and why
...                        # train, generate, save_pretrained as before
restore(model)
"""

from relpos.integrations.transformers.apply import FAMILIES, Change, Report, accelerate, restore, supported
from relpos.integrations.transformers.replace import replace_encoding

__all__ = ["FAMILIES", "Change", "Report", "accelerate", "replace_encoding", "restore", "supported"]
