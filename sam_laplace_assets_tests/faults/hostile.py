"""Files that would run code, or read what is not ours, if anything unpickled or followed them."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from sam_laplace_assets.storage import files


class Touch:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w')",)


def raw(marker):
    """A pickle, in place of whatever file."""
    return pickle.dumps(Touch(marker))


def zipped(marker):
    """A file of PyTorch's with an object beside its tensors."""
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(3), "epoch": Touch(marker)}, buffer)
    return buffer.getvalue()


def legacy(marker):
    """The same, as PyTorch wrote it once."""
    buffer = io.BytesIO()
    torch.save({"epoch": Touch(marker)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def array_of_objects(marker):
    """A .npy file whose elements are pickled."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([[Touch(marker)] * 256] * 256, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def tagged_yaml(marker):
    """YAML that names what shall be called."""
    return f"data: !!python/object/apply:builtins.exec [\"open('{marker}', 'w')\"]\n".encode()


def extension_table(marker, note=b"{}"):
    """A Parquet file whose column has a type that older readers unpickle."""
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": raw(marker)}
    schema = pa.schema([pa.field("key", pa.string(), metadata=metadata)], metadata={b"sam_laplace_assets": note})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"key": ["a"]}, schema=schema), sink)
    return sink.getvalue().to_pybytes()


def postscript(marker):
    """A program in place of a picture, which says what a panel would say of itself."""
    return (
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%version: 1\n%%provenance: 0\n%%EndComments\n"
        f"({marker}) (w) file closefile\nshowpage\n"
    ).encode()


FORMS = {"pt": (zipped, legacy, raw), "npy": (array_of_objects, raw), "yaml": (tagged_yaml, raw),
         "png": (postscript, raw), "parquet": (extension_table, raw), "h5": (raw,), "json": (raw, tagged_yaml),
         "jsonl": (raw,)}  # fmt: skip
"""Ending of a file -> what is put in its place."""


def bomb(size):
    """A file of PyTorch's that unpacks to far more than it is."""
    whole = io.BytesIO()
    torch.save({"weights": torch.zeros(size // 4)}, whole)
    packed = io.BytesIO()
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record.filename))
    return packed.getvalue()


def claims_more(size):
    """A file of PyTorch's whose tensor claims `size` numbers and brings three."""
    whole = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, whole)
    claimed = io.BytesIO()
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(claimed, "w") as target:
        for record in source.infolist():
            content = source.read(record.filename)
            if record.filename.endswith("data.pkl"):
                content = content.replace(b"K\x03", b"J" + size.to_bytes(4, "little"))
            target.writestr(record.filename, content)
    return claimed.getvalue()


def seal(document):
    """A JSON document as its writer would have signed it."""
    return files.sealed({name: said for name, said in document.items() if name != files.CHECK})


def forge(folder, name, content, *, named_by):
    """Put a file in place, and have the JSON file that completes the set name its SHA-256: no digest finds it out."""
    (folder / name).write_bytes(content)
    said = json.loads((folder / named_by).read_text())
    said["sha256"][name] = files.sha256(content)
    (folder / named_by).write_text(json.dumps(seal(said)))


def rename(path, **said):
    """Have a JSON file say something else, signed as its writer would have."""
    path.write_text(json.dumps(seal(json.loads(path.read_text()) | said)))


def of_another_file(path, name, secret, how):
    """Have a dataset of an HDF5 file lie in another one.

    Args:
        how: `external link`, `external storage`, `virtual` or `soft link`.
    """
    with h5py.File(path, "r+", locking=False) as file:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        if how == "external link":
            file[name] = h5py.ExternalLink(str(secret), "/data")
        elif how == "soft link":
            file["beside"] = h5py.ExternalLink(str(secret), "/data")
            file[name] = h5py.SoftLink("/beside")
        elif how == "external storage":
            file.create_dataset(name, shape, dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[:] = h5py.VirtualSource(str(secret), "data", shape)
            file.create_virtual_dataset(name, layout)


HOW = ("external link", "soft link", "external storage", "virtual")


def hdf5_secret(path, like):
    """An HDF5 file elsewhere, whose `data` has the shape of a dataset of ours."""
    with h5py.File(path, "w") as file:
        file["data"] = np.ones(like.shape, like.dtype)
    return path


def plain_yaml(value):
    """A value as YAML."""
    return yaml.safe_dump(value).encode()


def pictures_program():
    """Whether this machine has the program that Pillow would hand PostScript to."""
    import shutil

    return shutil.which("gs") is not None


def everything_below(folder: Path):
    """Each file below a folder, with its size and time."""
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*") if not path.is_dir()}
