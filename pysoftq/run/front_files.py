"""The files of a front: written as its rungs end, measured at the end of the run.

A file is written before ``front.json`` lists it. What is listed is never written again: a run that
is resumed before the end of a rung, from its last checkpoint, keeps the file of that rung.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pysoftq.artifact import load_compressed
from pysoftq.compressor.compressor import Compressor
from pysoftq.compressor.rungs import asked_for
from pysoftq.run.compressed_file import write_compressed
from pysoftq.run.folder import RUNGS
from pysoftq.run.front import Front, FrontRung
from pysoftq.run.networks import NetworkRow
from pysoftq.run.setup import Run


def record_rung(run: Run, compressor: Compressor) -> None:
    """Write the network of the rung that ends, unless the file is listed and there."""
    processes, folder = run.processes, run.folder
    front = processes.lead(lambda: _without_present(run, compressor))
    if front is None:
        return
    number, rung = len(asked_for(compressor.rungs)) - 1, compressor.rungs[-1]
    assert rung.target.bytes is not None
    assert rung.quality is not None
    file = file_name(rung.target.bytes, front.sizes[0])
    if run.sharded:  # all processes write their parts
        write_compressed(run, folder.path / file)
    else:
        processes.lead(lambda: write_compressed(run, folder.path / file))
    if not processes.leads:
        return
    written = FrontRung(
        file=file,
        target_bytes=rung.target.bytes,
        predicted_bytes=rung.bytes,
        bytes=(folder.path / file).stat().st_size,
        bits=rung.bits,
        validation=run.data.task.merit_at(rung.quality),
    )
    rungs = (*front.rungs[:number], written, *front.rungs[number + 1 :])
    replace(front, rungs=rungs).write(folder.front)


def file_name(size: int, largest: int) -> str:
    """The file of a rung in the folder of a run; names sort by size."""
    return f"{RUNGS}/{size:0{len(str(largest))}}-bytes.safetensors"


def finish_front(run: Run, pretrained: NetworkRow) -> int:
    """Measure all rungs on the test data, and choose the one that the model is then.

    It is the smallest one that loses on the validation data no more than reports tolerate; if none
    does, the one that loses least.
    """
    task, model, folder = run.data.task, run.model, run.folder
    front = Front.read(folder.front)
    merits = []
    for rung in front.rungs:
        load_compressed(_path(run, rung), model)
        merits.append(task.merit_of(*run.tested(rung.file)))
    chosen = front.least(task.tolerated)
    before = task.merit_of(pretrained.loss or 0.0, pretrained.accuracy)
    replace(front.measured(before, merits), chosen=chosen).write(folder.front)
    load_compressed(_path(run, front.rungs[chosen]), model)
    return chosen


def _without_present(run: Run, compressor: Compressor) -> Front | None:
    """The front so far, if the file of the present rung is not listed, or not there."""
    number, front = len(asked_for(compressor.rungs)) - 1, _front(run, compressor)
    if number < len(front.rungs) and _path(run, front.rungs[number]).is_file():
        return None
    run.folder.rungs.mkdir(exist_ok=True)
    return front


def _front(run: Run, compressor: Compressor) -> Front:
    """The front so far."""
    if run.folder.front.is_file():
        return Front.read(run.folder.front)
    reference = compressor.report().reference
    assert reference is not None
    sizes = tuple(target.bytes for target in compressor.targets if target.bytes is not None)
    return Front(run.data.task.name, sizes, run.data.task.merit_at(reference))


def _path(run: Run, rung: FrontRung) -> Path:
    return run.folder.path / rung.file
