"""The maildrop: an mbox file that other programs deliver to meanwhile."""
