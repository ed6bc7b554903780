"""The exceptions, and who raises them.

    VestigeError
    ├── InvalidInput (ValueError)      records, labels, tables or handles are not as expected
    ├── PlanError (ValueError)         an audit that cannot be run as asked
    │   └── ForeignFolder              an output folder that holds another audit
    ├── MissingModels                  a record has no out-model (or in-model) in the pool
    ├── DatasetUnavailable             a data set is not on this machine and cannot be fetched
    ├── StoreError                     what is on disk cannot be read or written
    │   └── DamagedFile                one file's content is not what was written
    ├── RemoteError                    a service does not answer as it should
    │   └── BudgetSpent                no query is left; what was answered is kept
    ├── MissingExtra (ImportError)     an optional dependency is absent
    └── GateFailed                     a limit on leakage was exceeded

Every message is one sentence or two: what was expected, what came, and what to do. The command
line prints it and exits with code 2 (1 for `GateFailed`); nothing else of ours reaches a user as
a traceback.
"""

__all__ = [
    "BudgetSpent",
    "DamagedFile",
    "DatasetUnavailable",
    "ForeignFolder",
    "GateFailed",
    "InvalidInput",
    "MissingExtra",
    "MissingModels",
    "PlanError",
    "RemoteError",
    "StoreError",
    "VestigeError",
]


class VestigeError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidInput(VestigeError, ValueError):
    """Records, labels, predictions or a handle are not what was expected."""


class PlanError(VestigeError, ValueError):
    """An audit cannot be run as asked (too few records, unknown attack, ...)."""


class ForeignFolder(PlanError):
    """The output folder holds the work of another plan."""


class MissingModels(VestigeError):
    """A record has no model of the kind the attack needs (trained without, or with, it)."""


class DatasetUnavailable(VestigeError):
    """A data set is neither on this machine nor can be fetched."""


class StoreError(VestigeError):
    """The store on disk cannot be read or written (no space, no permission, ...)."""


class DamagedFile(StoreError):
    """A file is not what was written: truncated, altered or foreign."""


class RemoteError(VestigeError):
    """A service does not answer, or not as it should."""


class BudgetSpent(RemoteError):
    """The query budget does not allow what was asked; every answer so far is kept."""


class MissingExtra(VestigeError, ImportError):
    """An optional dependency is absent; the message names the extra to install."""


class GateFailed(VestigeError):
    """A measured leakage exceeds a limit."""
