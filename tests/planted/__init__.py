"""Faults to plant in the package, and which quick tests are to catch each of them.

Each is one line that an inattentive change might leave behind: a sign, a side, a factor, a moment
that is not carried, a mask that is dropped. `test_planted_faults.py` plants them.
"""
