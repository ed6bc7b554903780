"""The command line: words to calls and back, no logic."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import vestige
from vestige.errors import GateFailed, PlanError, VestigeError

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Shows what training leaves behind in a model.",
)
data = typer.Typer(no_args_is_help=True, help="Data sets: list them, fetch them, find them.")
app.add_typer(data, name="data")
encode = typer.Typer(
    no_args_is_help=True, help="Membership encoding: a mark in a model, and claims that rest on it."
)
app.add_typer(encode, name="encode")

Out = Annotated[Path, typer.Option(help="Folder for models, signals and the report.")]
Folder = Annotated[Path, typer.Argument(help="The folder of an audit.")]
Attacks = Annotated[str, typer.Option(help="Names of attacks, with commas between, or 'standard'.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit code 0 done, 1 a gate or claim failed, 2 a wrong request."""
    try:
        code = app(arguments, standalone_mode=False)
        sys.stdout.flush()
        # typer may swallow Ctrl-C and return its exit code instead
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            sys.exit(code)
    except GateFailed as failed:
        print(failed, file=sys.stderr)
        sys.exit(1)
    except VestigeError as error:
        _refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print(
            "vestige: interrupted; run the same command again (without --fresh) to go on",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # the reader of our output went away, as `head` does; nothing may be written at exit
        sys.stdout = None
        sys.exit(0)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except Exception as error:
        # what typer raises for a misspelled option; anything else is a bug, and says so
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(describe(), file=sys.stderr)
            sys.exit(2)
        _refuse(f"{describe()} (see --help)")


@contextmanager
def _begun_anew(work: str) -> Iterator[None]:
    """Of work of which nothing is kept, Ctrl-C says so."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"vestige: interrupted; of {work} nothing is kept, it begins anew", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _refuse(why: str) -> NoReturn:
    """One line, whatever a library or a file's name put into the sentence."""
    print(f"vestige: {' '.join(why.split())}", file=sys.stderr)
    sys.exit(2)


@app.command()
def audit(
    plan: Annotated[
        str,
        typer.Argument(
            help="digits, adult, breast_cancer, location30, mnist, cifar10, a PLAN.toml, or "
            "package.module:function.",
            show_default=False,
        ),
    ] = "digits",
    out: Annotated[
        Path | None, typer.Option(help="Folder for models and report; runs/NAME by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    references: Annotated[int | None, typer.Option(help="Reference models, even.")] = None,
    attacks: Attacks = "",
    device: Annotated[
        str, typer.Option(help="cpu (the default), cuda or auto.", show_default=False)
    ] = "cpu",
    engine: Annotated[
        str,
        typer.Option(
            help="Where models are trained: local (the default) or ray.", show_default=False
        ),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Worker processes; by default as many as pay.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a Ray cluster; without it a Ray is started here."),
    ] = None,
    answers: Annotated[
        str, typer.Option(help="The filter of the target's answers: top3, round1, label, ...")
    ] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what is in the folder.")] = False,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Open pickled models that you made yourself.")
    ] = False,
    no_records: Annotated[
        bool, typer.Option("--no-records", help="Leave the exposed records out of the report.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Measure what a model gives away about the records it was trained on.

    PLAN is digits (the default), adult, breast_cancer, location30, mnist, cifar10, a PLAN.toml, or
    package.module:function for a function that returns a vestige.Plan.
    """
    from dataclasses import replace

    from vestige.plans import plan_of
    from vestige.training.cluster import guard
    from vestige.training.engines import engine_of

    where = engine_of(engine, workers, address)
    if engine == "ray" and address is None:
        guard()
    made = plan_of(plan, seed=seed, references=references, trust_pickle=trust_pickle)
    changes: dict[str, Any] = {
        "command": _command(
            "audit", plan, attacks, made.seed, made.references, device, trust_pickle, answers
        )
    }
    if no_records:
        changes["show_records"] = False
    if answers:
        changes["answers"] = answers
    if attacks:
        changes["attacks"] = _names(attacks)
    made = replace(_on_device(made, device), **changes)
    _run(made, out or _folder(made.name), fresh, quiet, where)


@app.command()
def predictions(
    file: Annotated[Path, typer.Argument(help="A table as .npz, .csv or .parquet.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report; runs/NAME by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.", show_default=False)] = 0,
    attacks: Attacks = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what is in the folder.")] = False,
    quiet: Quiet = False,
) -> None:
    """Audit a table of predictions: no model at all.

    FILE is an .npz, .csv or .parquet with p0, p1, ... (or logit0, ...), label and member (0 or 1).
    """
    from dataclasses import replace

    from vestige.tables import plan_of_table

    made = plan_of_table(file, seed=seed)
    changes: dict[str, Any] = {"command": _command("predictions", str(file), attacks, seed)}
    if attacks:
        changes["attacks"] = _names(attacks)
    _run(replace(made, **changes), out or _folder(made.name), fresh, quiet)


@app.command()
def serve(
    plan: Annotated[
        str, typer.Argument(help="Whose target: what `vestige audit` takes.", show_default=False)
    ],
    filter: Annotated[
        str, typer.Option(help="What answers pass: top3, round1, temperature5+round2, label, ...")
    ] = "",
    outputs: Annotated[
        str,
        typer.Option(
            help="probabilities (the default), log_probabilities or labels.", show_default=False
        ),
    ] = "probabilities",
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for a free one.", show_default=False)] = 0,
    token_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with the tokens that are let in, by commas."),
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="Records that may be asked with one token.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Open pickled models that you made yourself.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Put a model behind HTTP on this machine, until Ctrl-C.

    Where the plan names no model, the one that its audit would attack is trained first.
    """
    import secrets
    from dataclasses import replace

    from vestige.audit import target_of
    from vestige.defenses import behind
    from vestige.models import Predictions
    from vestige.plans import plan_of
    from vestige.progress import shown
    from vestige.remote import RemoteModel
    from vestige.serving import SHOWN
    from vestige.serving import serve as run
    from vestige.training.fit import one_thread

    made = plan_of(plan, seed=seed, trust_pickle=trust_pickle)
    if outputs not in SHOWN:
        raise PlanError(f"expected outputs among {', '.join(SHOWN)}, got {outputs!r}")
    if isinstance(made.target, RemoteModel):
        raise PlanError(
            f"expected a plan whose model is here, got one of a service; ask {made.target!r} "
            "itself, since what is served here would spend its budget for everybody"
        )
    # noise is the service's secret: nobody who knows this program may subtract it
    secret = secrets.randbits(62)
    # the plan says what its target's answers pass; here they pass it
    passed, made = filter or made.answers or "none", replace(made, answers="")
    behind(Predictions(probabilities=[[0.5, 0.5]]), passed, seed=secret)
    with shown(quiet) as progress, one_thread():
        model = behind(target_of(made, progress=progress), passed, seed=secret)
    run(model, host=host, port=port, outputs=outputs, token_env=token_env, budget=budget)


@app.command()
def reproduce(
    what: Annotated[
        str, typer.Argument(help="An experiment, or 'list'.", show_default=False)
    ] = "list",
    scale: Annotated[
        str, typer.Option(help="ci (the default), laptop or paper.", show_default=False)
    ] = "ci",
    row: Annotated[str | None, typer.Option(help="One row; by default all, one by one.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results and models; runs/reproduce by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.", show_default=False)] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure finished rows again.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure a table or figure of a paper: the paper's figures beside ours, with intervals."""
    from vestige import reproduce as room
    from vestige.progress import shown
    from vestige.reproduce import text
    from vestige.training.fit import one_thread

    if what == "list":
        print(text.listing(room.listed()))
        return
    with shown(quiet) as progress, one_thread():
        found = room.run(
            what,
            scale,
            row=row,
            out=out or room.OUT,
            seed=seed,
            fresh=fresh,
            progress=progress,
            tell=progress.tell,
        )
    print(text.table(room.experiment(what), found))


@app.command()
def report(folder: Folder) -> None:
    """Render report.html again from report.json."""
    from vestige.report import Report, write_html

    print(write_html(Report.load(folder), folder))


@app.command()
def gate(
    folder: Folder,
    max: Annotated[
        list[str] | None, typer.Option(help="METRIC=LIMIT, for example tpr@0.01=0.05; repeatable.")
    ] = None,
    bound: Annotated[
        str,
        typer.Option(
            help="What is compared: value (the default), or its low or high bound.",
            show_default=False,
        ),
    ] = "value",
) -> None:
    """Exit with 1, and say what broke, where a measured leakage exceeds a limit.

    Without --max the limits are auc=0.6 and tpr@0.01=0.1.
    """
    from vestige.report import DEFAULT_LIMITS, Report
    from vestige.report import gate as check
    from vestige.report.gate import not_judged

    limits = dict(_limit(text) for text in max) if max else dict(DEFAULT_LIMITS)
    report = Report.load(folder)
    broken = check(report, limits, bound=bound)  # type: ignore[arg-type]
    if broken:
        raise GateFailed("\n".join(broken))
    left = not_judged(report, limits)
    print(
        "passed: "
        + ", ".join(f"{name} at most {limit:g}" for name, limit in limits.items())
        + (f"; not judged, as it cannot be measured: {', '.join(left)}" if left else "")
    )


@data.command("list")
def list_sets() -> None:
    """The data sets, and where each comes from."""
    from vestige import datasets

    for name in datasets.names():
        row = datasets.describe(name)
        shape = "x".join(map(str, row.shape))
        size = f"{row.n_records:>7} x {shape:<10}{len(row.classes):>4} classes"
        print(f"{name:34}{size}  {row.how_to_get}")


@data.command()
def prepare(
    folder: Annotated[Path, typer.Argument(help="Where NAME.npz files go.")],
    names: Annotated[list[str] | None, typer.Argument(help="Which; all by default.")] = None,
) -> None:
    """Fetch the public originals and write them as VESTIGE_DATA wants them."""
    from vestige import datasets

    datasets.prepare(folder, names or None)


@data.command()
def path(name: Annotated[str, typer.Argument(help="A data set.")]) -> None:
    """Where a data set is looked for."""
    from vestige import datasets

    print(datasets.path(name))


PlanName = Annotated[str, typer.Argument(help="What `vestige audit` takes.", show_default=False)]
KeyFile = Annotated[Path, typer.Option(help="The key's file.", show_default=False)]
Weights = Annotated[
    Path | None, typer.Option(help="Of the plan's network, as .safetensors; else its own model.")
]
DrawSeed = Annotated[
    int | None,
    typer.Option(help="Of the plan's draw of records; by default the one that was trained with."),
]


@encode.command("key")
def new_key(file: Annotated[Path, typer.Argument(help="Where it goes; not overwritten.")]) -> None:
    """Draw a key and write it where only you can read it."""
    from vestige.watermarks import Key

    made = Key.new()
    made.save(file)
    print(f"key {made.name} in {file}: who has it can claim your models, and remove the mark")


@encode.command("train")
def train_marked(
    plan: PlanName,
    key: KeyFile,
    out: Annotated[Path, typer.Option(help="A new folder for model and papers.")] = Path(
        "runs/marked"
    ),
    layer: Annotated[
        str,
        typer.Option(help="That carries the mark; by default the linear layer before the last."),
    ] = "",
    black_box: Annotated[
        bool, typer.Option("--black-box", help="In the log-probabilities, which an API shows too.")
    ] = False,
    rate: Annotated[float, typer.Option(help="Share of the records that the key encodes.")] = 0.2,
    steps: Annotated[int, typer.Option(help="Encoding steps before each step.")] = 1,
    lr: Annotated[
        float | None, typer.Option(help="Of the encoding steps; by default the plan's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random but the key.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a plan's network to carry the key's mark, and commit to it; exit with 1 where it does
    not take."""
    from vestige.encode import marked
    from vestige.plans import plan_of
    from vestige.progress import shown
    from vestige.watermarks import Key

    if layer and black_box:
        raise PlanError(
            f"expected --layer {layer} or --black-box, got both; a mark lies in a layer, or in the "
            "log-probabilities"
        )
    made, secret = plan_of(plan, seed=seed), Key.load(key)
    with shown(quiet) as progress, _begun_anew("a mark's training"):
        found = marked(
            made,
            secret,
            out,
            layer=None if black_box else layer,
            rate=rate,
            steps=steps,
            lr=lr,
            progress=progress,
        )
    print(found)
    if not found.proves:
        raise typer.Exit(1)


@encode.command()
def decode(
    plan: PlanName,
    key: KeyFile,
    encoding: Annotated[Path, typer.Option(help="encoding.json of the mark.")],
    weights: Weights = None,
    seed: DrawSeed = None,
) -> None:
    """What the key tells of a plan's members and non-members; exit with 1 where it is nothing."""
    from vestige.encode import as_marked, decoded, load_format, model_of
    from vestige.plans import plan_of
    from vestige.watermarks import Key

    said = load_format(encoding)
    made = as_marked(plan_of(plan, seed=said.seed if seed is None else seed), said)
    found = decoded(made, Key.load(key), said.encoding, model_of(made, weights), said.reading)
    print(found)
    if not found.read:
        raise typer.Exit(1)


@encode.command()
def check(
    plan: PlanName,
    weights: Weights = None,
    references: Annotated[int, typer.Option(help="Models to train by the plan.")] = 19,
    alpha: Annotated[float, typer.Option(help="Rate of false alarms.")] = 0.05,
    store: Annotated[
        Path | None, typer.Option(help="Keeps these models for the next check with this seed.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of these models and of what is asked; else nobody's guess."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Without a key: is a model what the plan's training gives? Exit with 1 where it is not."""
    import secrets

    from vestige.encode import checked, model_of
    from vestige.plans import plan_of
    from vestige.progress import shown
    from vestige.training.fit import one_thread

    made = plan_of(plan)
    model = model_of(made, weights)
    drawn = secrets.randbelow(2**31) if seed is None else seed
    if store is not None:
        again = f"seed {drawn}: with --seed {drawn} and this store a check that was stopped goes on"
        print(again, file=sys.stderr)
    lost = nullcontext() if store is not None else _begun_anew("a check without --store")
    with shown(quiet) as progress, one_thread(), lost:
        found = checked(
            made,
            model,
            references=references,
            alpha=alpha,
            seed=drawn,
            store=store,
            progress=progress,
        )
    print(found)


@encode.command()
def challenge(
    commitment: Annotated[Path, typer.Argument(help="The owner's commitment.")],
    out: Annotated[Path, typer.Option(help="A new file.")],
    n: Annotated[int, typer.Option(help="Records to ask for.")] = 2500,
) -> None:
    """For a verifier: draw the records that a claim must show."""
    from vestige.encode import save_challenge
    from vestige.watermarks.ownership import Commitment
    from vestige.watermarks.ownership import challenge as drawn

    asked = drawn(Commitment.load(commitment), n)
    save_challenge(out, asked)
    all_of_them = ", all there are" if len(asked.places) < n else ""
    print(f"{len(asked.places):,} records are asked for{all_of_them}: {out}")


@encode.command()
def claim(
    plan: PlanName,
    opening: Annotated[Path, typer.Option(help="opening.json of the mark.")],
    challenge: Annotated[Path, typer.Option(help="The verifier's.")],
    out: Annotated[Path, typer.Option(help="A new file; its records go beside it.")],
    seed: DrawSeed = None,
) -> None:
    """For an owner: show the key and the records that a verifier asks for."""
    from vestige.encode import as_marked, asked_for, format_beside
    from vestige.plans import plan_of
    from vestige.watermarks.ownership import Opening
    from vestige.watermarks.ownership import claim as answered

    own, said = Opening.load(opening), format_beside(opening)
    made = plan_of(plan, seed=said.seed if said is not None and seed is None else seed)
    if said is not None:
        as_marked(made, said)
    answered(own, made.split.members, asked_for(challenge)).save(out)
    print(f"{out} and {out}.npz: they hold the key and records; hand them to the verifier alone")


@encode.command()
def verify(
    plan: PlanName,
    claim: Annotated[Path, typer.Option(help="The owner's.")],
    commitment: Annotated[Path, typer.Option(help="As it was deposited.")],
    challenge: Annotated[Path, typer.Option(help="Your own.")],
    deposited: Annotated[str, typer.Option(help="When the commitment was deposited: 2026-03-01.")],
    released: Annotated[str, typer.Option(help="When others could first see the model.")],
    tries: Annotated[int, typer.Option(help="Commitments that this claimant deposited.")] = 1,
    controls: Annotated[
        int, typer.Option(help="Keys of nobody to try beside it; each asks as much.", min=0)
    ] = 0,
    weights: Weights = None,
) -> None:
    """Test a claim on a plan's model; exit with 1, and say why, where it is refused.

    A plan that only names the model needs no [data].
    """
    from vestige.encode import model_of, tested
    from vestige.plans import plan_of
    from vestige.watermarks.ownership import Claim

    answer = Claim.load(claim)
    found = tested(
        lambda: model_of(plan_of(plan, shown=answer.records, weights=weights), weights),
        commitment,
        challenge,
        answer,
        deposited=deposited,
        released=released,
        tries=tries,
        n_controls=controls,
    )
    print(
        f"accepted: the key's choice would fit a model made without it so well with p = "
        f"10^{found.log10_p:.1f}; {found.matched:,} of {found.total:,} encoded records are above "
        f"the middle, and {found.others_matched:,} of the {found.others:,} other records shown "
        f"(binomial p = 10^{found.matched_log10_p:.1f})"
    )
    if found.controls:
        small = sum(10**p <= 0.05 for p in found.controls)
        print(
            f"of {len(found.controls)} keys of nobody {small} have a p of 0.05 or less, the least "
            f"is 10^{min(found.controls):.1f}"
        )


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Shows what training leaves behind in a model."""
    if show:
        print(vestige.__version__)
        raise typer.Exit


def _run(plan: Any, out: Path, fresh: bool, quiet: bool, engine: Any = None) -> None:
    from vestige.audit import run
    from vestige.progress import shown
    from vestige.training.engines import Local
    from vestige.training.fit import one_thread

    with shown(quiet) as progress, one_thread():
        made = run(
            plan,
            out,
            fresh=fresh,
            engine=engine or Local(),
            progress=progress,
            tell=progress.tell,
        )
    print(made)
    print(f"\n{out / 'report.html'}")


def _folder(name: str) -> Path:
    """runs/NAME, whatever characters the name has."""
    return Path("runs") / (re.sub(r"[^\w.-]+", "-", name).strip(".-") or "audit")


def _names(attacks: str) -> Any:
    return "standard" if attacks == "standard" else [n.strip() for n in attacks.split(",")]


def _command(
    name: str,
    what: str,
    attacks: str,
    seed: int,
    references: int | None = None,
    device: str = "cpu",
    trust_pickle: bool = False,
    answers: str = "",
) -> str:
    """The command that gives the same numbers again, for a shell.

    The engine is left out: no number depends on it, and who repeats an audit has other machines.
    """
    words = ["vestige", name, what, "--seed", str(seed)]
    words += ["--references", str(references)] if references is not None else []
    words += ["--attacks", attacks] if attacks else []
    words += ["--device", device] if device != "cpu" else []
    words += ["--trust-pickle"] if trust_pickle else []
    words += ["--answers", answers] if answers else []
    return shlex.join(words)


def _on_device(plan: Any, device: str) -> Any:
    from dataclasses import replace

    import torch

    from vestige.training.recipe import TorchRecipe

    if device not in ("cpu", "cuda", "auto"):
        raise PlanError(f"expected the device cpu, cuda or auto, got {device!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(plan.recipe, TorchRecipe) and device != "cpu":
        plan = replace(plan, recipe=replace(plan.recipe, device=device))
    asked = device == "cuda" or getattr(plan.recipe, "device", "cpu").startswith("cuda")
    if asked and not torch.cuda.is_available():
        raise PlanError("expected a CUDA device, found none; use the device cpu")
    return plan


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise PlanError(f"expected METRIC=LIMIT, for example auc=0.55, got {text!r}") from None
