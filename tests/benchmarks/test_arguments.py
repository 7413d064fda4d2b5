"""What the benchmarks' commands say to what they cannot do: one sentence, before anything has run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import learn, loss, update
from benchmarks.arguments import positive, usable_device

Command = Callable[[Sequence[str]], int]


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (learn.main, ["--device", "foo"], "'foo' is no device"),
        (learn.main, ["--device", "meta"], "neither a CPU nor a GPU"),
        (learn.main, ["--jobs", "-1"], "'-1' is not a whole number above 0"),
        (loss.main, ["--vocabulary", "-3"], "'-3' is not a whole number above 0"),
        (loss.main, ["--repeats", "0"], "'0' is not a whole number above 0"),
        (update.main, ["--tokens", "-1"], "'-1' is not a whole number above 0"),
        (update.main, ["--updates", "0"], "'0' is not a whole number above 0"),
    ],
)
def test_an_argument_that_means_nothing_is_refused(
    command: Command, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        command(arguments)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [learn.main, loss.main])
def test_a_gpu_that_is_not_there_is_refused(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(["--device", "cuda"])
    assert "there is no GPU that torch can use" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--folder", "--report"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_any_run(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folders = {"--folder": str(tmp_path / "runs"), option: str(tmp_path / "file" / "x")}
    with pytest.raises(SystemExit, match="cannot be written to"):
        learn.main([word for pair in folders.items() for word in pair])
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_model_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no config\.json"):
        update.main(["--model", str(tmp_path)])
    runs = tmp_path / "runs"
    with pytest.raises(SystemExit, match=r"has no config\.json"):
        learn.main(["--tier", "small", "--model", str(tmp_path), "--folder", str(runs)])
    assert not list(runs.rglob("*.jsonl"))


def test_what_means_something_is_taken() -> None:
    assert positive("12") == 12
    assert usable_device("cpu:0") == "cpu"
