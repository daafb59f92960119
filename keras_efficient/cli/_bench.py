"""`keras-efficient bench`: time exported models against each other."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from keras_efficient._errors import InputError


@dataclass(frozen=True)
class Settings:
    """The options of `bench`."""

    directories: tuple
    onnx: tuple
    litert: tuple
    openvino: tuple
    batch: tuple
    length: tuple
    threads: int
    seconds: float
    vocabulary: int
    mixed: bool
    data: Path | None
    json: Path | None
    plot: Path | None


def show(settings: Settings) -> None:
    """Time the models, print a table, and write the JSON file and the plot if wanted.

    Raises:
        InputError: a file has the wrong suffix or cannot be written, or `bench` raises it.
    """
    from keras_efficient.bench import bench

    for option, suffix in (("onnx", ".onnx"), ("litert", ".tflite"), ("openvino", ".xml")):
        for path in getattr(settings, option):
            if path.suffix != suffix:
                raise InputError(f"--{option} must name a {suffix} file. Received: {str(path)!r}.")
    for option in ("json", "plot"):
        # Checked before measuring, which takes minutes.
        path = getattr(settings, option)
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise InputError(
                f"--{option} must name a file in an existing folder. Received: {str(path)!r}."
            )
    targets = [*settings.directories, *settings.onnx, *settings.litert, *settings.openvino]
    if not targets:
        raise InputError(
            "bench must be given a model. Received: none. Name a folder that was given to "
            "`ke.export`, or use --onnx, --litert or --openvino."
        )
    with Console(stderr=True).status("Loading the models and taking turns ..."):
        report = bench(
            targets,
            batches=settings.batch,
            lengths=settings.length,
            threads=settings.threads,
            seconds=settings.seconds,
            vocabulary=settings.vocabulary,
            data=settings.data,
            mixed=settings.mixed,
        )
    Console().print(report.table())
    if settings.plot is not None:
        report.plot(settings.plot)
    if settings.json is not None:
        try:
            settings.json.write_text(report.to_json(), encoding="utf-8")
        except OSError as error:
            raise InputError(
                "--json must name a file that can be written. Received: "
                f"{str(settings.json)!r} ({error.strerror})."
            ) from error
