"""Settings shared by all tests."""

import os

from hypothesis import settings

# No deadline: a shared machine stalls at times, and a test that times itself would flake. In CI the same examples run every
# time, so that a red build means that the change is at fault; at a developer's desk each run explores new ones.
settings.register_profile("cartwheel", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "cartwheel")
