"""Imported first by the fork server, so that it ends with its runner also in the middle of what it imports next."""

from align.runtime.process import end_with_runner

end_with_runner()
