"""The typer application: all commands with their options, and `main`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from keras_efficient import __version__
from keras_efficient._errors import InputError, VerificationError
from keras_efficient.cli._option_names import option_names, with_option_names
from keras_efficient.cli._passthrough_command import PassthroughCommand
from keras_efficient.cli._printable import printable

app = typer.Typer(
    help="Train a Transformer several times cheaper and ship it several times smaller.",
    epilog="Shell completion of commands and options: keras-efficient --install-completion",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool):
    if wanted:
        print(f"keras_efficient {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
):
    pass


#: Defaults of `bench`.
_BATCHES, _LENGTHS = [1, 8, 32], [32, 64, 128]

#: Default of `compress`.
_FRONT = [0.5, 1.0, 2.0]

#: Defaults of `finetune`.
_TEXT_COLUMN, _LABEL_COLUMN = ["text"], ["label"]

#: Options of several commands.
Library = Annotated[str, typer.Option(help="keras (KerasHub) or tf_keras (Hugging Face TF).")]
Epochs = Annotated[int, typer.Option(help="Passes over the training data.")]
BatchSize = Annotated[int, typer.Option(help="Examples per optimizer update.")]
MicrobatchSize = Annotated[
    int | None, typer.Option(help="Examples in memory at once; default: the batch size.")
]
LearningRate = Annotated[float, typer.Option(help="Peak learning rate, after the warm-up.")]
Precision = Annotated[str, typer.Option(help="auto, float32, mixed_bfloat16 or mixed_float16.")]
Delimiter = Annotated[
    str | None,
    typer.Option(
        parser=lambda text: {"tab": "\t", r"\t": "\t"}.get(text, text),
        metavar="CHARACTER",
        help="Between the fields of CSV and TSV files, or tab; default: found in the header.",
    ),
]
MaxLength = Annotated[int, typer.Option(help="Truncate texts to this many tokens.")]
Seed = Annotated[int, typer.Option(help="Seed of the split, the shuffling and dropout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything without training.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")]
Quantize = Annotated[
    str | None, typer.Option(help="Export as int8, int8-weights or bfloat16; default: float32.")
]
Target = Annotated[
    str | None,
    typer.Option(help="For --quantize int8: CPUs that serve, avx2, vnni or amx; default: this."),
]
LogSeconds = Annotated[
    float, typer.Option(help="Time between lines of progress if output is not a terminal.")
]


@app.command()
def finetune(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="CSV, TSV, JSONL or Parquet files, or .txt files of texts without labels; or a "
            "pattern such as 'train-*.csv'."
        ),
    ],
    model: Annotated[str, typer.Option(help="Model folder, or the name of a preset.")],
    output: Annotated[Path, typer.Option(help="Folder for versions 1, 2, ... of the model.")],
    task: Annotated[str, typer.Option(help="What is learned; see ke.tasks.names().")] = (
        "classification"
    ),
    text_column: Annotated[
        list[str], typer.Option(help="Column with the texts; twice for pairs of texts.")
    ] = _TEXT_COLUMN,
    label_column: Annotated[
        list[str], typer.Option(help="Column with the labels; repeatable if the task allows it.")
    ] = _LABEL_COLUMN,
    delimiter: Delimiter = None,
    tokens_dir: Annotated[
        Path | None,
        typer.Option(help="For data larger than memory: write its tokens into this folder."),
    ] = None,
    validation_data: Annotated[
        Path | None,
        typer.Option(help="Labelled file, or pattern, to evaluate on, instead of a split."),
    ] = None,
    validation: Annotated[
        float,
        typer.Option(help="Fraction (below 1) or number of rows to hold out."),
    ] = 0.1,
    library: Library = "keras",
    epochs: Epochs = 2,
    batch_size: BatchSize = 32,
    microbatch_size: MicrobatchSize = None,
    learning_rate: LearningRate = 5e-5,
    precision: Precision = "auto",
    max_length: MaxLength = 128,
    class_weights: Annotated[
        str | None, typer.Option(help="balanced: rare classes weigh more in the loss.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Keep the best epoch by macro_f1, accuracy or loss, or another metric of the "
            "--task; default: the last epoch, with --patience the task's first."
        ),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after this many epochs without a better --metric.")
    ] = None,
    quantize: Quantize = None,
    target: Target = None,
    seed: Seed = 0,
    log_seconds: LogSeconds = 30.0,
    dry_run: DryRun = False,
    resume: Resume = False,
):
    """Fine-tune a Transformer on texts, evaluate it, and export it as a verified SavedModel."""
    options = {**locals()}
    from keras_efficient.cli._finetune import Settings, run

    for name in ("data", "text_column", "label_column"):
        given = options[name]
        options[name] = given[0] if len(given) == 1 else tuple(given)
    run(Settings(**{name: value for name, value in options.items() if name in Settings.names()}))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the model.")] = Path(
        "saved_models/movie_reviews"
    ),
    library: Library = "keras",
    epochs: Epochs = 1,
    batch_size: BatchSize = 32,
    microbatch_size: MicrobatchSize = None,
    learning_rate: LearningRate = 1e-4,
    precision: Precision = "auto",
    quantize: Quantize = None,
    target: Target = None,
    seed: Seed = 0,
    log_seconds: LogSeconds = 30.0,
    dry_run: DryRun = False,
    resume: Resume = False,
):
    """Fine-tune MiniLM on 9,000 movie reviews, test it on 1,605 others, and export it."""
    from keras_efficient.cli._finetune import Settings, run
    from keras_efficient.data import _demo_assets as demo_assets

    with Console(stderr=True).status("Fetching MiniLM and the movie reviews ..."):
        model, data = str(demo_assets.demo_model()), demo_assets.demo_reviews()
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
            class_weights=None,
            metric=None,
            patience=None,
            quantize=quantize,
            target=target,
            seed=seed,
            log_seconds=log_seconds,
            dry_run=dry_run,
            resume=resume,
        )
    )


@app.command()
def compress(
    model: Annotated[
        Path,
        typer.Argument(
            help="The --output of finetune, a trained-N in it, or a folder of ke.models.save."
        ),
    ],
    data: Annotated[
        list[Path],
        typer.Option(help="The labelled file that the model was trained on; repeatable."),
    ],
    target: Annotated[
        str, typer.Option(help="speedup=10, latency_ms=5, parameters=2e6 or bytes=2e6.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the results of all phases.")],
    max_drop: Annotated[
        str, typer.Option(help="Share of the model's accuracy that may be lost, such as 1%.")
    ] = "1%",
    unlabelled: Annotated[
        Path | None, typer.Option(help="File of further texts, which only the model labels.")
    ] = None,
    text_column: Annotated[
        list[str] | None,
        typer.Option(help="Column with the texts, twice for pairs; default: as in finetune."),
    ] = None,
    label_column: Annotated[
        list[str] | None,
        typer.Option(help="Column with the labels, repeatable; default: as in finetune."),
    ] = None,
    delimiter: Delimiter = None,
    validation_data: Annotated[
        Path | None, typer.Option(help="Labelled file to evaluate on, unknown to the model.")
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(help="Fraction or number of rows held out; default: as in finetune."),
    ] = None,
    front: Annotated[
        list[float], typer.Option(help="Candidates for these multiples of the target; repeatable.")
    ] = _FRONT,
    batch: Annotated[int, typer.Option(help="Texts per call for which latency counts.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens in each.")] = 64,
    threads: Annotated[int, typer.Option(help="Threads within one operation when timed.")] = 1,
    copies: Annotated[
        int, typer.Option(help="Altered copies of each text, which only the model labels.")
    ] = 4,
    min_frequency: Annotated[
        int, typer.Option(help="Remove tokens that the texts have less often; 0: keep all.")
    ] = 2,
    epochs: Annotated[int, typer.Option(help="Passes over the texts for each candidate.")] = 3,
    batch_size: BatchSize = 32,
    learning_rate: LearningRate = 4e-4,
    alpha: Annotated[
        float, typer.Option(help="Weight of the labels; the rest is the teacher's.")
    ] = 0.0,
    temperature: Annotated[float, typer.Option(help="Softens the teacher's predictions.")] = 2.0,
    max_length: Annotated[
        int | None, typer.Option(help="Truncate texts to so many tokens; default: as in finetune.")
    ] = None,
    precision: Precision = "auto",
    seed: Annotated[
        int | None, typer.Option(help="Seed of the training; default: that of finetune.")
    ] = None,
    log_seconds: LogSeconds = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, with estimated minutes, and stop.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
):
    """Make a fine-tuned model several times smaller and faster: shrink, distil, quantize, compare.

    Exit code 3: no candidate reaches the target and keeps the accuracy.
    """
    options = {**locals()}
    import dataclasses

    for name in ("data", "text_column", "label_column"):
        given = options[name] or [None]
        options[name] = given[0] if len(given) == 1 else tuple(given)
    from keras_efficient.cli._compress import Settings, pipeline_settings, run

    names = {field.name for field in dataclasses.fields(Settings)}
    run(Settings(**{n: v for n, v in options.items() if n in names}), pipeline_settings(options))


@app.command(cls=PassthroughCommand)
def launch(
    program: Annotated[
        list[str],
        typer.Argument(
            metavar="SCRIPT | -m MODULE  [ARGS...]", help="Program to start, and its own options."
        ),
    ],
    workers: Annotated[
        int | None, typer.Option(help="Number of workers: here, in Ray, or in Kubernetes.")
    ] = None,
    hosts: Annotated[
        str | None, typer.Option(help="host:port,host:port,...: start workers there by ssh.")
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write a batch script.")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="Start through Ray Train.")] = False,
    kubernetes: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Write a TFJob for Kubeflow.")
    ] = None,
    max_restarts: Annotated[
        int | None,
        typer.Option(help="Restarts after failures; default: 0, with --slurm no limit."),
    ] = None,
    grace: Annotated[
        float | None, typer.Option(help="Seconds from SIGTERM to SIGKILL; default: 30.")
    ] = None,
    gpus_per_worker: Annotated[int | None, typer.Option(help="Default: all visible GPUs.")] = None,
    threads_per_worker: Annotated[
        int | None, typer.Option(help="CPU threads per worker; default: all cores.")
    ] = None,
    log_dir: Annotated[
        Path | None, typer.Option(help="Folder for logs, one file per worker and attempt.")
    ] = None,
    join_timeout: Annotated[
        float | None,
        typer.Option(help="Stop if a worker trains alone for so long; default: only warn."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the first local worker; default: free ports.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Python interpreter of the workers; default: this one.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Slurm: number of nodes.")] = None,
    tasks_per_node: Annotated[
        int | None, typer.Option(help="Slurm: workers per node; default: 1.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Slurm: time limit, such as 2:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm: partition.")] = None,
    name: Annotated[str | None, typer.Option(help="Kubernetes: name of the job.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Kubernetes: namespace.")] = None,
    volume_claim: Annotated[
        str | None, typer.Option(help="Kubernetes: volume claim to mount at /checkpoints.")
    ] = None,
    no_istio: Annotated[
        bool | None, typer.Option("--no-istio", help="Kubernetes: without Istio's sidecar.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Slurm, Kubernetes: file to write; default: print it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be started, without starting it.")
    ] = False,
):
    """Start a script in several workers, connected through TF_CONFIG."""
    options = {**locals(), "program": tuple(program)}
    from keras_efficient.cli._launch import Settings, launch as start

    raise typer.Exit(start(Settings(**options)))


@app.command()
def serve(
    directory: Annotated[Path, typer.Argument(help="NAME: its newest version; NAME/3: that one.")],
    name: Annotated[
        str | None, typer.Option(help="In requests; default: the folder's name.")
    ] = None,
    rest_port: Annotated[int, typer.Option(help="Port for REST and monitoring.")] = 8501,
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC.")] = 8500,
    batching: Annotated[
        Path | None, typer.Option(help="File of batching parameters; default: no batching.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads within one operation; 1 for the most requests per second."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command, without running it.")
    ] = False,
):
    """Start TensorFlow Serving, installed or in Docker, for an exported model."""
    from keras_efficient.cli._serve import Settings, start

    settings = Settings(directory, name, rest_port, grpc_port, batching, threads, dry_run)
    raise typer.Exit(start(settings))


@app.command()
def predict(
    directory: Annotated[Path, typer.Argument(help="NAME: its newest version; NAME/3: that one.")],
    text: Annotated[list[str] | None, typer.Option(help="A text; repeatable.")] = None,
    second_text: Annotated[
        list[str] | None, typer.Option(help="The second text of a pair, for each --text.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="File with one text on each line.")] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Lines of --file have two texts, with a tab between.")
    ] = False,
    signature: Annotated[str, typer.Option(help="Name of a signature that takes texts.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
):
    """Run an exported model on a few texts, without a server."""
    from keras_efficient.cli._predict import Settings, show

    texts, seconds = tuple(text or ()), tuple(second_text or ())
    show(Settings(directory, texts, seconds, file, pairs, signature, as_json))


@app.command()
def bench(
    directories: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR", help="NAME: its newest version; NAME/3.")
    ] = None,
    onnx: Annotated[list[Path] | None, typer.Option(help="An .onnx file; repeatable.")] = None,
    litert: Annotated[list[Path] | None, typer.Option(help="A .tflite file; repeatable.")] = None,
    openvino: Annotated[list[Path] | None, typer.Option(help="An .xml file; repeatable.")] = None,
    batch: Annotated[list[int], typer.Option(help="Examples per call; repeatable.")] = _BATCHES,
    length: Annotated[list[int], typer.Option(help="Tokens in each; repeatable.")] = _LENGTHS,
    threads: Annotated[int, typer.Option(help="Threads within one operation.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time limit per model and case.")] = 3.0,
    vocabulary: Annotated[int, typer.Option(help="Token ids are drawn below this number.")] = 1000,
    mixed: Annotated[bool, typer.Option(help="Also time batches of unequal lengths.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="For accuracy: .npz with the inputs' arrays and `labels`."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File to write the results to.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Image file to plot the latencies to.")] = None,
):
    """Time exported models against each other, interleaved, in separate processes."""
    options = {**locals()}
    from keras_efficient.cli._bench import Settings, show

    several = ("directories", "onnx", "litert", "openvino", "batch", "length")
    options |= {name: tuple(options[name] or ()) for name in several}
    show(Settings(**options))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input, 130 interrupted.

    `compress` exits with 3 if no candidate reaches the target and keeps the accuracy, `launch` with
    the code of the first worker that failed, `serve` with that of the server.

    Args:
        arguments: list of str. Default: None, those of the process.
    """
    # Silence the messages that TensorFlow logs when it starts.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    command = typer.main.get_command(app)
    console = Console(stderr=True)
    try:
        code = command.main(arguments, standalone_mode=False)
    except (InputError, VerificationError) as error:
        words = sys.argv[1:] if arguments is None else arguments
        # A message may quote names from a model or a file.
        message = printable(with_option_names(str(error), option_names(command, words)))
        console.print(f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True)
        code = 2 if isinstance(error, InputError) else 1
    except Exception as error:
        # Usage errors of typer have these attributes; anything else is a bug.
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        if show := getattr(error, "show", None):
            show()
    sys.exit(code or 0)
