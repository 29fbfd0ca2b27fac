"""Every error metaprune raises on purpose, by cause.

One root, so that `except MetapruneError` catches them all; each class also inherits the built-in a caller would
expect. A message names what failed (operator, module, shape, figure) and the next step.
"""


class MetapruneError(Exception):
    """Root of all errors raised on purpose."""


class UntraceableError(MetapruneError, RuntimeError):
    """The model could be neither recorded nor exported; names the module, the operator and what to change."""


class InputsError(MetapruneError, ValueError):
    """A graph form is called with inputs that its trace did not see; says what it saw and what to do."""


class PlanError(MetapruneError, ValueError):
    """A plan, keep set or pattern does not fit the network's `Space`."""


class InfeasibleBudgetError(MetapruneError, ValueError):
    """No structure meets the budget.

    `smallest` maps each metric to the smallest value that can be reached under the given constraints.
    """

    def __init__(self, message: str, smallest: dict[str, float]):
        super().__init__(message)
        self.smallest = smallest

    def __reduce__(self):  # keeps `smallest` when the error crosses a process border
        return type(self), (str(self), self.smallest)


class VerificationError(MetapruneError, RuntimeError):
    """The cut network does not equal its masked original; nothing was handed over."""


class DataError(MetapruneError, ValueError):
    """Data that cannot be used as given (corrupt image, wrong shape, empty split)."""


class DataMissingError(DataError, FileNotFoundError):
    """A data set is not on this machine; the message holds the command that gets it."""


class ConfigError(MetapruneError, ValueError):
    """An option, recipe key, name or spec string is not understood; names the closest one that is."""


class WeightsError(MetapruneError, ValueError):
    """A weight file does not fit the model; lists the keys that do not."""


class DamagedFileError(DataError, ConfigError, WeightsError):
    """A file that metaprune wrote is damaged, was changed, or is none; names the file and the next step.

    One class for configs, weights and data, so that `except` catches it as what the caller was reading.
    """


class WriteError(MetapruneError, OSError):
    """Files could not be written (full disk, no rights); what stood there before is whole."""


class TrainingDivergedError(MetapruneError, RuntimeError):
    """The training loss or gradient is not finite; raised before the update, names step and learning rate."""


class SearchError(MetapruneError, RuntimeError):
    """A search cannot go on (its storage is gone); what was evaluated is kept, and the same command continues."""


class MissingDependencyError(MetapruneError, ImportError):
    """An optional package is needed; names the extra to install."""


class NotAvailableError(MetapruneError, NotImplementedError):
    """The feature does not exist (yet) for this input; says what can be used instead."""


class NoEffectWarning(UserWarning):
    """What was asked for changes nothing."""


class VacuousProofWarning(UserWarning):
    """A cut that is not proved, because there is nothing that depends on it to compare."""


class FixedBatchWarning(UserWarning):
    """The network runs at one batch size only, or what was taken for its batch is none."""


class CollapseWarning(UserWarning):
    """What was learned gives the same answer to different questions."""


class UncoveredOpWarning(UserWarning):
    """An operator without a rule locked what entered it."""


def one_line_error(error: BaseException) -> str:
    """Write a foreign error on one line, with the place that raised it: `TypeError: ... (file.py:12)`."""
    import traceback

    places = traceback.extract_tb(error.__traceback__)
    where = f" ({places[-1].filename}:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:300]}{where}"


def first_line(error: BaseException) -> str:
    """What an error says, on one line; the name of its class where it says nothing."""
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def closest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """` Did you mean 'x'?`, or the empty string: the tail of a message about an unknown name."""
    import difflib

    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" Did you mean {match[0]!r}?" if match else ""
