"""KerasHub's own files of LoRA compute here what they compute there."""

import h5py
import numpy as np
import pytest
from zoo import ZOO, keras_of

import keras_efficient as ke
from keras_efficient.parametrize._parametrized_layer import transforms

SPECIMEN = next(s for s in ZOO if s.name == "kerashub-bert")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A file of a model that KerasHub's own LoRA was trained on, and that model's base."""
    model, (x, y) = SPECIMEN.make(), SPECIMEN.batch(12)
    model.backbone.enable_lora(2)
    model.compile(keras_of("keras").optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    path = tmp_path_factory.mktemp("theirs") / "x.lora.h5"
    model.backbone.save_lora_weights(str(path))
    return path


def hidden(model, x):
    return np.asarray(getattr(model, "backbone", model)(x)["sequence_output"])


def test_the_same_as_in_kerashub(theirs):
    x, _ = SPECIMEN.batch(5)
    reference, model = SPECIMEN.make(), SPECIMEN.make()
    base = hidden(model, x)
    reference.backbone.enable_lora(2)
    reference.backbone.load_lora_weights(str(theirs))
    report = ke.load_adapters(model, theirs)
    assert len(report.weights) == 2
    wanted = hidden(reference, x)
    assert np.abs(wanted - base).max() > 1e-3
    np.testing.assert_allclose(hidden(model, x), wanted, rtol=0, atol=1e-6)
    # Only they and the head train, and they merge.
    assert len(model.trainable_variables) == 2 * 2 + 2
    ke.merge(model)
    np.testing.assert_allclose(hidden(model, x), wanted, rtol=0, atol=1e-6)


def test_onto_a_backbone_and_beside_another_and_written_anew(theirs, tmp_path):
    x, _ = SPECIMEN.batch(5)
    first, model = SPECIMEN.make(), SPECIMEN.make()
    ke.load_adapters(first, theirs)
    ke.load_adapters(model.backbone, theirs)
    np.testing.assert_array_equal(hidden(first, x), hidden(model, x))
    # The numbers of layers count no layer of ours.
    model = SPECIMEN.make()
    ke.lora(model, 2)
    ke.load_adapters(model, theirs, name="theirs")
    np.testing.assert_allclose(hidden(first, x), hidden(model, x), rtol=0, atol=1e-6)
    ke.save_adapters(first, tmp_path / "a.safetensors")
    model = SPECIMEN.make()
    ke.load_adapters(model, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(hidden(first, x), hidden(model, x))


def outside(file, folder):
    with h5py.File(folder / "secret.h5", "w") as other:
        other["lora_kernel_a"] = np.zeros((8, 2, 2), "float32")
    layer = next(key for key in file["lora"] if key != "vars")
    del file[f"lora/{layer}/vars/lora_kernel_a"]
    return f"lora/{layer}/vars", "lora_kernel_a"


def linked(file, folder):
    group, name = outside(file, folder)
    file[group][name] = h5py.ExternalLink(str(folder / "secret.h5"), name)


def stored_elsewhere(file, folder):
    group, name = outside(file, folder)
    (folder / "raw").write_bytes(bytes(128))
    file[group].create_dataset(name, (8, 2, 2), "float32", external=[(str(folder / "raw"), 0, 128)])


def virtual(file, folder):
    group, name = outside(file, folder)
    layout = h5py.VirtualLayout((8, 2, 2), "float32")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), name, (8, 2, 2))
    file[group].create_virtual_dataset(name, layout)


def moved(file, folder):
    layer = next(key for key in file["lora"] if key != "vars")
    file.move(f"lora/{layer}", "lora/0")


def reshaped(file, folder):
    group, name = outside(file, folder)
    file[group][name] = np.zeros((8, 2, 3), "float32")


def ranked(file, folder):
    del file["lora/vars/rank"]
    file["lora/vars/rank"] = -1


def texts(file, folder):
    group, name = outside(file, folder)
    file[group][name] = np.array([[b"x"]])


def emptied(file, folder):
    for key in [key for key in file["lora"] if key != "vars"]:
        del file[f"lora/{key}"]


def integers(file, folder):
    group, name = outside(file, folder)
    file[group][name] = np.zeros((8, 2, 2), "int64")


def without_numbers(file, folder):
    group, name = outside(file, folder)
    file[group][name] = np.full((8, 2, 2), np.nan, "float32")


def overflowing(file, folder):
    group, name = outside(file, folder)
    file[group][name] = np.full((8, 2, 2), 1e300, "float64")


def twice(file, folder):
    layer = next(key for key in file["lora"] if key != "vars")
    file.copy(f"lora/{layer}", f"lora/0{layer}")


def of_8_gb(file, folder):
    """The file has a few kB: HDF5 stores no values for it."""
    group, name = outside(file, folder)
    file[group].create_dataset(name, (8, 2, 2**27), "float32", chunks=(8, 2, 1024))
    del file["lora/vars/rank"]
    file["lora/vars/rank"] = 2**27


EDITS = {
    integers: "lora_kernel_a of int64",
    without_numbers: "lora_kernel_a with values that are NaN",
    overflowing: "lora_kernel_a with values that are NaN or infinite",
    twice: "two deltas for",
    of_8_gb: r"lora_kernel_a of float32 \(8, 2, 134217728\)",
    linked: "with a link there",
    stored_elsewhere: "no dataset of the file itself",
    virtual: "no dataset of the file itself",
    moved: "a delta for layer 0, which has no kernel",
    reshaped: r"lora_kernel_a of float32 \(8, 2, 3\)",
    ranked: "deltas of rank -1",
    texts: r"lora_kernel_a of \|S1",
    emptied: "0 deltas",
}


def test_a_file_that_was_tampered_with_changes_nothing(theirs, tmp_path):
    model = SPECIMEN.make()
    before = len(model.trainable_variables)
    for change, message in EDITS.items():
        folder = tmp_path / change.__name__
        folder.mkdir()
        path = folder / "b.lora.h5"
        path.write_bytes(theirs.read_bytes())
        with h5py.File(path, "r+") as file:
            change(file, folder)
        with pytest.raises(ke.InputError, match=message):
            ke.load_adapters(model, path)
        assert not transforms(model) and len(model.trainable_variables) == before


def test_what_is_no_such_file_or_no_such_model(theirs, tmp_path):
    path = tmp_path / "b.lora.h5"
    path.write_bytes(theirs.read_bytes()[:500])
    with pytest.raises(ke.InputError, match="cannot be read"):
        ke.load_adapters(SPECIMEN.make(), path)
    with pytest.raises(ValueError, match="is for a KerasHub backbone"):
        ke.load_adapters(ZOO[0].make(), theirs)
