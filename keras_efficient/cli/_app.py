"""The commands and their options."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from keras_efficient._errors import InputError, VerificationError
from keras_efficient.cli._passthrough_command import PassthroughCommand

app = typer.Typer(
    help="Train a Transformer several times cheaper and ship it several times smaller.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: Options that `finetune` and `demo` share.
Library = Annotated[str, typer.Option(help="keras (KerasHub) or tf_keras (Hugging Face TF).")]
Epochs = Annotated[int, typer.Option(help="Passes over the training data.")]
BatchSize = Annotated[int, typer.Option(help="Examples per optimizer update.")]
MicrobatchSize = Annotated[
    int | None, typer.Option(help="Examples in memory at once; default: the batch size.")
]
LearningRate = Annotated[float, typer.Option(help="Highest learning rate, after the warm-up.")]
Precision = Annotated[str, typer.Option(help="auto, float32, mixed_bfloat16 or mixed_float16.")]
MaxLength = Annotated[int, typer.Option(help="Cut longer texts, in tokens.")]
Seed = Annotated[int, typer.Option(help="Of the split, the shuffling and the dropout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, train nothing.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]


@app.command()
def finetune(
    data: Annotated[Path, typer.Argument(help="CSV, TSV or JSONL file with a header.")],
    model: Annotated[str, typer.Option(help="Model folder, or the name of a preset.")],
    output: Annotated[Path, typer.Option(help="Where versions 1, 2, ... of the model go.")],
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    validation_data: Annotated[
        Path | None, typer.Option(help="Labelled file to evaluate on, instead of a share.")
    ] = None,
    validation: Annotated[
        float, typer.Option(help="Share of the data to hold out (below 1), or how many rows.")
    ] = 0.1,
    library: Library = "keras",
    epochs: Epochs = 2,
    batch_size: BatchSize = 32,
    microbatch_size: MicrobatchSize = None,
    learning_rate: LearningRate = 5e-5,
    precision: Precision = "auto",
    max_length: MaxLength = 128,
    seed: Seed = 0,
    dry_run: DryRun = False,
    resume: Resume = False,
):
    """Fine-tune a text classifier, evaluate it, and export it as a checked SavedModel."""
    from keras_efficient.cli._finetune import Settings, run

    run(Settings(**{name: value for name, value in locals().items() if name in Settings.names()}))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the model goes.")] = Path(
        "saved_models/movie_reviews"
    ),
    library: Library = "keras",
    epochs: Epochs = 1,
    batch_size: BatchSize = 32,
    microbatch_size: MicrobatchSize = None,
    learning_rate: LearningRate = 1e-4,
    precision: Precision = "auto",
    seed: Seed = 0,
    dry_run: DryRun = False,
    resume: Resume = False,
):
    """Fine-tune MiniLM on 9,000 movie reviews, test on 1,605 others, export and check it."""
    from keras_efficient.cli._finetune import Settings, run
    from keras_efficient.data import _demo_assets as demo_assets

    with Console(stderr=True).status("Fetching MiniLM and the movie reviews ..."):
        model, data = str(demo_assets.minilm()), demo_assets.movie_reviews()
    run(
        Settings(
            data=data,
            model=model,
            output=output,
            text_column="text",
            label_column="label",
            validation_data=None,
            validation=1605,
            library=library,
            epochs=epochs,
            batch_size=batch_size,
            microbatch_size=microbatch_size,
            learning_rate=learning_rate,
            precision=precision,
            max_length=128,
            seed=seed,
            dry_run=dry_run,
            resume=resume,
        )
    )


@app.command(cls=PassthroughCommand)
def launch(
    program: Annotated[
        list[str],
        typer.Argument(
            metavar="SCRIPT | -m MODULE  [ARGS...]", help="What to start; its own options follow."
        ),
    ],
    workers: Annotated[
        int | None, typer.Option(help="Workers on this machine, or of Ray or Kubernetes.")
    ] = None,
    hosts: Annotated[
        str | None, typer.Option(help="host:port,host:port: workers there, by ssh.")
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write a batch script.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Start through Ray Train.")] = False,
    kubernetes: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Write a TFJob for Kubeflow.")
    ] = None,
    max_restarts: Annotated[
        int | None,
        typer.Option(help="Start all again after a failure; default: 0, with --slurm no limit."),
    ] = None,
    grace: Annotated[
        float | None, typer.Option(help="Seconds from SIGTERM to SIGKILL; default: 30.")
    ] = None,
    gpus_per_worker: Annotated[int | None, typer.Option(help="Default: all it can see.")] = None,
    threads_per_worker: Annotated[
        int | None, typer.Option(help="CPU threads; default: all cores for each worker.")
    ] = None,
    log_dir: Annotated[
        Path | None, typer.Option(help="One file per worker and attempt goes here.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Of the first local worker; default: free ones.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Interpreter of the workers; default: this one.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Slurm: machines.")] = None,
    tasks_per_node: Annotated[
        int | None, typer.Option(help="Slurm: workers on each machine; default: 1.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Slurm: limit, such as 2:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm: where to run.")] = None,
    name: Annotated[str | None, typer.Option(help="Kubernetes: name of the job.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Kubernetes: where to run.")] = None,
    volume_claim: Annotated[
        str | None, typer.Option(help="Kubernetes: claim to mount at /checkpoints.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Slurm, Kubernetes: file to write; default: print it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be started, start nothing.")
    ] = False,
):
    """Start a script in several workers, which find each other through TF_CONFIG."""
    options = {**locals(), "program": tuple(program)}
    from keras_efficient.cli._launch import Settings
    from keras_efficient.cli._launch import launch as start

    raise typer.Exit(start(Settings(**options)))


@app.command()
def serve(
    directory: Annotated[Path, typer.Argument(help="NAME: its newest version; NAME/3: that one.")],
    name: Annotated[str | None, typer.Option(help="In requests; default: the folder's.")] = None,
    rest_port: Annotated[int, typer.Option(help="Port for REST and monitoring.")] = 8501,
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC.")] = 8500,
    batching: Annotated[
        Path | None, typer.Option(help="File of batching parameters; default: no batching.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be run, start nothing.")
    ] = False,
):
    """Start TensorFlow Serving (its program, or its container) for an exported model."""
    from keras_efficient.cli._serve import Settings, start

    raise typer.Exit(start(Settings(directory, name, rest_port, grpc_port, batching, dry_run)))


@app.command()
def predict(
    directory: Annotated[Path, typer.Argument(help="NAME: its newest version; NAME/3: that one.")],
    text: Annotated[list[str] | None, typer.Option(help="A text; may come several times.")] = None,
    file: Annotated[Path | None, typer.Option(help="File with one text on each line.")] = None,
    signature: Annotated[str, typer.Option(help="Signature that takes texts.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
):
    """Say what an exported model makes of some texts: a quick look, not a server."""
    from keras_efficient.cli._predict import Settings, show

    show(Settings(directory, tuple(text or ()), file, signature, as_json))


@app.command()
def bench(
    directories: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR", help="NAME: its newest version; NAME/3.")
    ] = None,
    onnx: Annotated[list[Path] | None, typer.Option(help="An .onnx file; repeatable.")] = None,
    litert: Annotated[list[Path] | None, typer.Option(help="A .tflite file; repeatable.")] = None,
    batch: Annotated[list[int], typer.Option(help="Examples in a call; repeatable.")] = (1, 8, 32),
    length: Annotated[list[int], typer.Option(help="Tokens; repeatable.")] = (32, 64, 128),
    threads: Annotated[int, typer.Option(help="Threads of one operation.")] = 1,
    seconds: Annotated[float, typer.Option(help="For each model and case, at most.")] = 3.0,
    vocabulary: Annotated[int, typer.Option(help="Token ids are below this.")] = 1000,
    data: Annotated[
        Path | None, typer.Option(help=".npz with the inputs' arrays and `labels`: accuracy too.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the latencies here, as a PNG.")] = None,
):
    """Time exported models against each other, each in a process of its own, taking turns."""
    options = {**locals()}
    from keras_efficient.cli._bench import Settings, show

    several = ("directories", "onnx", "litert", "batch", "length")
    options |= {name: tuple(options[name] or ()) for name in several}
    show(Settings(**options))


def main(arguments=None):
    """Run the command line. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.

    `launch` ends with the exit code of the first worker that failed.
    """
    # TensorFlow's start-up notes would bury ours.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    command = typer.main.get_command(app)
    console = Console(stderr=True)
    try:
        code = command.main(arguments, standalone_mode=False)
    except (InputError, VerificationError) as error:
        console.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        code = 2 if isinstance(error, InputError) else 1
    except Exception as error:
        # Typer's own usage errors know how to show themselves; anything else is a bug of ours.
        if not hasattr(error, "exit_code"):
            raise
        if hasattr(error, "show"):
            error.show()
        code = error.exit_code
    sys.exit(code or 0)
