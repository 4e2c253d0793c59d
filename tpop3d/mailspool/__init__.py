"""The maildrop: an mbox file to which other programs deliver at the same time."""
