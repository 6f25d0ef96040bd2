"""relpos in models of x-transformers: one line, same weights, same outputs, memory linear in the length.

from relpos.integrations.x_transformers import accelerate, replace_encoding, restore

print(accelerate(model))   # what changed, what did not, and why
...                        # train and generate as before
restore(model)
"""

from relpos.integrations.transformers.apply import Change, Report, restore
from relpos.integrations.x_transformers.apply import TESTED, accelerate, replace_encoding

__all__ = ["TESTED", "Change", "Report", "accelerate", "replace_encoding", "restore"]
