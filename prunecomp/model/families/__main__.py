"""``python -m prunecomp.model.families > docs/reference/families.md``."""

from prunecomp.model.families import TABLE
from prunecomp.model.families.document import families_page

print(families_page(TABLE), end="")
