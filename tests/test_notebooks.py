"""The notebooks: executed from the first cell to the last, and kept in the repository as a reader wants them.

A cell with the tag "figures" shows a dict of numbers; FIGURES says between which bounds each must lie.
"""

import ast
import json
import pathlib
import re
import sys
import warnings

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
FIGURES = {
    "01_first_recipe": {
        "dense_accuracy": (0.95, 1.0),
        "int8_accuracy": (0.94, 1.0),
        "sparsity": (0.79, 0.81),
        "gzip_ratio": (0.0, 0.5),
        "chain_accuracy": (0.94, 1.0),
        "chain_sparsity": (0.79, 0.81),
        "chain_agreement": (0.98, 1.0),
    },
    "02_quantization_aware": {
        "float_accuracy": (0.9, 1.0),
        "rounded_accuracy": (0.8, 0.99),
        "file_accuracy": (0.92, 1.0),
        "agreement": (0.98, 1.0),
        "bytes_ratio": (0.0, 0.85),
        "chain_accuracy": (0.9, 1.0),
        "chain_sparsity": (0.3, 0.45),
        "chain_agreement": (0.98, 1.0),
    },
    "03_sensitivity": {
        "dense_accuracy": (0.93, 1.0),
        "zeros": (0.4, 0.9),
        "zeros_gain_at_once": (0.0, 0.8),
        "zeros_gain_trained": (-0.02, 0.02),
        "channels_macs": (0.3, 0.5),
        "channels_gain_trained": (-0.02, 0.02),
        "chain_accuracy": (0.93, 1.0),
        "chain_sparsity": (0.4, 0.9),
    },
    "04_augmentation_and_pipelines": {
        "equal_rows": (1.0, 1.0),
        "different_seeds": (7, 7),
        "equal_threads": (1.0, 1.0),
        "equal_epochs": (0.0, 0.0),
        "equal_ways": (3, 3),
        "read_share": (0.3, 1.0),
        "read_share_in_memory": (0.0, 0.0),
    },
    "05_distillation": {
        "teacher_accuracy": (0.95, 1.0),
        "plain_accuracy": (0.4, 0.95),
        "distilled_accuracy": (0.8, 1.0),
        "gain": (0.0, 0.5),
        "size_ratio": (0.0, 0.05),
        "int4_accuracy": (0.75, 1.0),
        "ensemble_accuracy": (0.95, 1.0),
        "student_accuracy": (0.8, 1.0),
        "file_accuracy": (0.8, 1.0),
        "file_agreement": (0.97, 1.0),
    },
    "06_auto": {
        "dense_accuracy": (0.95, 1.0),
        "file_accuracy": (0.93, 1.0),
        "bytes_ratio": (0.1, 0.44),
        "gzip_ratio": (0.05, 0.5),
        "reached": (1, 1),
        "tried": (2, 8),
    },
    "07_serving": {
        "accuracy": (0.9, 1.0),
        "equal_served": (1.0, 1.0),
        "equal_predicted": (1.0, 1.0),
        "failed": (0, 0),
        "wrong": (0, 0),
        "faults_after_kill": (0, 0),
    },
}


@pytest.fixture
def kernel(tmp_path, monkeypatch, digits_dir) -> str:
    """The name of a kernel on this interpreter; it and its notebooks leave the home folder alone."""
    jupyter = tmp_path / "jupyter"
    spec = jupyter / "kernels" / "this" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "this", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(jupyter))
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("TFDS_DATA_DIR", str(digits_dir))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return "this"


def execute(notebook: nbformat.NotebookNode, folder: pathlib.Path, kernel: str) -> nbformat.NotebookNode:
    """The notebook with fresh outputs; nbclient raises where a cell does."""
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name=kernel, resources=resources)
    with warnings.catch_warnings():
        # The kernel listens on this machine only.
        warnings.filterwarnings("ignore", "Kernel is running over TCP without encryption")
        return client.execute()


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def figures_of(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """The numbers that the cells with the tag "figures" show."""
    found = {}
    for cell in code_cells(notebook):
        if "figures" in cell.metadata.get("tags", []):
            (output,) = (each for each in cell.outputs if each.output_type == "execute_result")
            found |= ast.literal_eval(output.data["text/plain"])
    return found


def check_figures(notebook: nbformat.NotebookNode, bounds: dict[str, tuple[float, float]]) -> None:
    found = figures_of(notebook)
    assert found.keys() == bounds.keys()
    outside = {name: found[name] for name, (low, high) in bounds.items() if not low <= found[name] <= high}
    assert not outside


def test_each_notebook_has_its_figures():
    assert NOTEBOOKS.keys() == FIGURES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_and_its_figures_hold(name, tmp_path, kernel):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    folder = tmp_path / "reader"
    folder.mkdir()
    check_figures(execute(notebook, folder, kernel), FIGURES[name])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_kept_outputs_are_whole_and_clean(name):
    path = NOTEBOOKS[name]
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 400_000
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    shown = json.dumps([*cells, *([cell.source for cell in notebook.cells])])
    assert re.findall(r"/(?:home|root|tmp|work|usr|mnt)/[\w./-]*", shown) == []
    check_figures(notebook, FIGURES[name])


def test_a_cell_that_raises_fails(tmp_path, kernel):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError('no digits')")])
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="no digits"):
        execute(notebook, tmp_path, kernel)


def test_the_kernel_is_this_interpreter_and_keeps_to_its_folder(tmp_path, kernel):
    shown = "{'python': sys.executable, 'folder': os.getcwd(), 'data': os.environ['TFDS_DATA_DIR']}"
    cell = nbformat.v4.new_code_cell(f"import os, sys\n{shown}", metadata={"tags": ["figures"]})
    found = figures_of(execute(nbformat.v4.new_notebook(cells=[cell]), tmp_path, kernel))
    assert (found["python"], found["folder"]) == (sys.executable, str(tmp_path))
    assert pathlib.Path(found["data"], "digits").is_dir()


def test_figures_out_of_bounds_or_missing_fail():
    output = nbformat.v4.new_output("execute_result", {"text/plain": "{'sparsity': 0.5}"})
    cell = nbformat.v4.new_code_cell("s", metadata={"tags": ["figures"]}, outputs=[output])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    check_figures(notebook, {"sparsity": (0.4, 0.6)})
    with pytest.raises(AssertionError, match="sparsity"):
        check_figures(notebook, {"sparsity": (0.79, 0.81)})
    with pytest.raises(AssertionError, match="accuracy"):
        check_figures(notebook, {"sparsity": (0.4, 0.6), "accuracy": (0.9, 1.0)})
