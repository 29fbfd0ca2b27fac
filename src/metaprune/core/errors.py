"""Every error metaprune raises on purpose, by cause.

One root, so that `except MetapruneError` catches them all; each class also inherits the built-in a caller would
expect. A message names what failed (operator, module, shape, figure) and the next step.
"""


class MetapruneError(Exception):
    """Root of all errors raised on purpose."""


class UntraceableError(MetapruneError, RuntimeError):
    """The model could be neither recorded nor exported; names the module, the operator and what to change.

    Cause: The forward uses what neither the recorder nor `torch.export` can follow.
    Fix: Do what the message says at the named line, or prune a part of the model, as `model.backbone`, alone.
    """


class InputsError(MetapruneError, ValueError):
    """A graph form is called with inputs that its trace did not see; says what it saw and what to do.

    Cause: A graph form has the sizes and arguments of its example.
    Fix: Call it as traced, trace with the inputs that you need, or ask for `form="module"`.
    """


class PlanError(MetapruneError, ValueError):
    """A plan, keep set or pattern does not fit the network's `Space`.

    Cause: A name, pattern or width that this network does not have.
    Fix: `print(network.explain())` lists the groups and their widths; take names from there.
    """


class InfeasibleBudgetError(MetapruneError, ValueError):
    """No structure meets the budget.

    `smallest` maps each metric to the smallest value that can be reached under the given constraints.

    Cause: Constraints, locked groups or the budget leave no structure; the message says what binds.
    Fix: Raise the budget to the smallest cost in the message, or loosen `ignore`, `only`, `round_to` or `min_keep`.
    """

    def __init__(self, message: str, smallest: dict[str, float]):
        super().__init__(message)
        self.smallest = smallest

    def __reduce__(self):  # keeps `smallest` when the error crosses a process border
        return type(self), (str(self), self.smallest)


class VerificationError(MetapruneError, RuntimeError):
    """The cut network does not equal its masked original; nothing was handed over.

    Cause: The two compute different numbers: a rule, or forward code that depends on widths, is wrong.
    Fix: Use `form="graph"` or `keep_module=True`. If that fails too, report the model: it is a bug here.
    """


class DataError(MetapruneError, ValueError):
    """Data that cannot be used as given (corrupt image, wrong shape, empty split).

    Cause: The data do not fit the model or the objective, or a file is corrupt.
    Fix: Change what the message names; which batches are read stands in docs/objectives.md.
    """


class DataMissingError(DataError, FileNotFoundError):
    """A data set is not on this machine; the message holds the command that gets it.

    Cause: The set was not fetched, or lies in another folder.
    Fix: Run the command in the message, `metaprune data get NAME`, or name the folder with `--from`.
    """


class ConfigError(MetapruneError, ValueError):
    """An option, recipe key, name or spec string is not understood; names the closest one that is.

    Cause: A typing error, a name of another version, or a value out of range.
    Fix: Take the name that the message proposes; all keys and ranges stand in the reference of recipes.
    """


class WeightsError(MetapruneError, ValueError):
    """A weight file does not fit the model; lists the keys that do not.

    Cause: The file is of another network, of other classes, or of other widths.
    Fix: Give the file of this network; for other classes `model.new_head = true` loads all but the last layer.
    """


class DamagedFileError(DataError, ConfigError, WeightsError):
    """A file that metaprune wrote is damaged, was changed, or is none; names the file and the next step.

    One class for configs, weights and data, so that `except` catches it as what the caller was reading.

    Cause: The file was cut off, edited, or mixed with one of another save.
    Fix: Save again, or take a copy; what metaprune writes holds a digest (docs/trust.md).
    """


class WriteError(MetapruneError, OSError):
    """Files could not be written (full disk, no rights); what stood there before is whole.

    Cause: A full disk, missing rights, or a folder that holds something else.
    Fix: Free space or give another folder, then run the same command again: it continues.
    """


class TrainingDivergedError(MetapruneError, RuntimeError):
    """The training loss or gradient is not finite; raised before the update, names step and learning rate.

    Cause: The learning rate is too high for these weights, or the data hold numbers that are not finite.
    Fix: Set `lr` below the rate in the message, set `max_grad_norm`, or look for NaN in the inputs.
    """


class SearchError(MetapruneError, RuntimeError):
    """A search cannot go on (its storage is gone); what was evaluated is kept, and the same command continues.

    Cause: The database or file of the study cannot be reached any more.
    Fix: Bring the storage back and run the same command again.
    """


class MissingDependencyError(MetapruneError, ImportError):
    """An optional package is needed; names the extra to install.

    Cause: An extra is not installed.
    Fix: Install the extra in the message, as `pip install 'metaprune[onnx]'`.
    """


class NotAvailableError(MetapruneError, NotImplementedError):
    """The feature does not exist (yet) for this input; says what can be used instead.

    Cause: The combination is not built, as a launch that shards the model.
    Fix: Use what the message names instead.
    """


class NoEffectWarning(UserWarning):
    """What was asked for changes nothing.

    Cause: The budget is met by the full network, or an option does not apply here.
    Fix: Lower the budget, or leave the option out.
    """


class VacuousProofWarning(UserWarning):
    """A cut that is not proved, because there is nothing that depends on it to compare.

    Cause: No output depends on what was cut, as with a branch whose result is not used.
    Fix: Check that the example inputs reach those layers; else the cut is safe and changes nothing.
    """


class FixedBatchWarning(UserWarning):
    """The network runs at one batch size only, or what was taken for its batch is none.

    Cause: The forward fixes the batch, or the first dimension is none (sequence-first layers).
    Fix: Name the dimension with `batch_dim=`, or read costs as those of one call on the example.
    """


class SlowWidthsWarning(UserWarning):
    """Widths that the constraints allow take longer than wider ones would.

    Cause: Kernels run in blocks of channels, by the latency table or by what is known of its runtime.
    Fix: Set `round_to=8`, in recipes `constraints.round_to = 8`.
    """


class CollapseWarning(UserWarning):
    """What was learned gives the same answer to different questions.

    Cause: The generator or predictor was trained too little, or on questions too alike.
    Fix: Train longer, or on more varied tasks or networks; else use a method that learns nothing.
    """


class UncoveredOpWarning(UserWarning):
    """An operator without a rule locked what entered it.

    Cause: metaprune knows no rule for an operator of the model.
    Fix: Add one (docs/rules.md), or leave it: only the named layers stay whole.
    """


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
