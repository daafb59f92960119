"""Which candidate `compress` recommends, and how it says so."""

import dataclasses

import pytest

import keras_efficient as ke
from keras_efficient.pipelines._target import Target

CASE = "batch 8, length 64"
FIGURES = {"keras": (40.0, 100e6), "int8": (10.0, 25e6), "5x": (8.0, 8e6), "10x": (4.0, 4e6)}
SCORES = {"5x": 0.80, "10x": 0.795}


def report(tmp_path, target="speedup=10", max_drop=0.01, metric="accuracy", **scores):
    from keras_efficient.pipelines._compress_report import compress_report

    times = ke.bench.BenchReport(
        1,
        {
            name: {
                "bytes": size,
                "cases": {CASE: {"processor_ms": ms, "median_ms": 2 * ms, "p95_ms": 2 * ms}},
            }
            for name, (ms, size) in FIGURES.items()
        },
        "a CPU",
    )
    teacher = {"score": 0.8, "score_int8": 0.79, "parameters": 22_000_000}
    teacher |= {"metric": metric, "interval": (0.76, 0.84), "evaluation": {"examples": 400}}
    candidates = {
        name: {"score": score, "parameters": 4_000_000, "directory": f"/x/{name}/int8/1"}
        for name, score in {**SCORES, **scores}.items()
    }
    settings = ke.pipelines.CompressSettings(target, max_drop=max_drop)
    refused = {"20x": "One layer with 32 neurons has 3 ms."}
    return compress_report(
        tmp_path, settings, teacher, times, candidates, refused, seconds={}, train=1, unlabelled=0
    )


def test_the_fastest_that_reaches_the_target_and_keeps_the_accuracy(tmp_path):
    found = report(tmp_path)
    assert found.recommended == "10x"
    assert "10.0 times as fast and 25.0 times smaller" in found.verdict()
    assert [row["keeps"] for row in found.rows] == [True, False, True, True]
    assert [row["reaches"] for row in found.rows] == [False, False, False, True]
    assert found.standard_error == pytest.approx(0.02, rel=0.03)
    # Keras' own export is as accurate as the candidate 5x, slower and larger.
    assert found.front() == ["5x", "10x"]
    text = str(found)
    assert "▶ 10x *" in text and "No candidate for 20x: One layer" in text
    # An easier target is reached by several: the fastest of them, or for a size the smallest.
    assert report(tmp_path, "speedup=4", 0.02).recommended == "10x"
    assert report(tmp_path, "bytes=9e6").recommended == "10x"


def test_scores_of_other_tasks_are_no_percentages(tmp_path):
    found = report(tmp_path, metric="R²")
    assert found.verdict().endswith("with 0.795 instead of 0.800 R².")
    text = str(found)
    assert "0.800" in text and "80.0%" not in text and "standard error of 0.020" in text
    found.plot(tmp_path / "front.png")


def test_none_is_good_enough(tmp_path):
    found = report(tmp_path, **{"10x": 0.7})
    assert found.recommended is None
    verdict = found.verdict()
    assert verdict.startswith("No candidate reaches speedup=10 with at least 99%")
    assert "With that accuracy the best is 5x (5.0 times as fast, 8.0 MB, 80.0%)" in verdict
    assert "At the target the best is 10x" in verdict
    assert found.to_dict()["verdict"] == verdict


def test_the_plot(tmp_path):
    found = report(tmp_path)
    found.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 20_000
    with pytest.raises(ke.InputError, match="an image file in an existing folder"):
        found.plot(tmp_path / "missing" / "front.png")
    # With a single candidate, and none recommended.
    single = dataclasses.replace(found, rows=found.rows[:3], recommended=None)
    single.plot(tmp_path / "single.svg")


def test_targets():
    assert Target.of("speedup=10") == Target.of({"speedup": 10.0}) == Target("speedup", 10.0)
    assert Target.of("bytes=2e6").label == "2 MB"
    assert [t.label for t in ke.pipelines.CompressSettings("speedup=10").targets()] == [
        "5x",
        "10x",
        "20x",
    ]
    settings = ke.pipelines.CompressSettings("latency_ms=4", front=(0.5,))
    assert [t.value for t in settings.targets()] == [8.0, 4.0]
    for target in ({"speedup": 10, "bytes": 1}, {}, "speedup=nan", None):
        with pytest.raises(ke.InputError, match="`target` must"):
            Target.of(target)


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_drop", 2),
        ("front", (0.0,)),
        ("batch", 0),
        ("copies", -1),
        ("min_frequency", 1.5),
        ("learning_rate", -1.0),
        ("seed", -1),
        ("divergence", "kl"),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ke.InputError, match=f"`{name}` must"):
        ke.pipelines.CompressSettings("speedup=2", **{name: value})
