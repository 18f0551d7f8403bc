"""Lines of `label text` become JSONL; what is not in that form is named."""

import json
import sys

import pytest

from scripts import prepare_sent_conv


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    def run(files: dict[str, bytes]):
        folder = tmp_path / "data" / "sent_conv"
        folder.mkdir(parents=True)
        for _, named in prepare_sent_conv.FILES.values():
            for file in named.values():
                (folder / file).write_bytes(files.get(file, b"1 good\n0 bad\n"))
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["prepare", "--data", str(tmp_path / "data"), "--output_dir", str(out)])
        prepare_sent_conv.main()
        return {
            str(path.relative_to(out)): [json.loads(line) for line in path.read_text().splitlines()]
            for path in out.rglob("*.jsonl")
        }

    return run


def test_each_split_is_a_file(prepare):
    found = prepare({"TREC.test.all": "3 Who was Zoë ?\n".encode("latin-1"), "custrev.all": b"1 good\n0 \n0 bad \n"})
    assert len(found) == 7
    assert found["trec/test.jsonl"] == [{"text": "Who was Zoë ?", "label": "person"}]
    assert found["cr/train.jsonl"] == [{"text": "good", "label": "positive"}, {"text": "bad", "label": "negative"}]


def test_an_unknown_label_is_named(prepare, capsys):
    with pytest.raises(SystemExit) as stop:
        prepare({"stsa.binary.dev": b"1 good\n2 odd\n"})
    assert stop.value.code == 2
    assert "stsa.binary.dev: row 2: must begin with a label (0, 1) and a blank" in capsys.readouterr().err


@pytest.mark.real_data
def test_the_published_files(tmp_path, monkeypatch, root):
    monkeypatch.setattr(
        sys, "argv", ["prepare", "--data", str(root.parent / "shared" / "data"), "--output_dir", str(tmp_path)]
    )
    prepare_sent_conv.main()
    sizes = {str(path.relative_to(tmp_path)): len(path.read_text().splitlines()) for path in tmp_path.rglob("*.jsonl")}
    assert sizes["sst2/train.jsonl"] == 6920
    assert sizes["sst2/test.jsonl"] == 1821
    assert sizes["trec/train.jsonl"] == 5452
    assert sizes["trec/test.jsonl"] == 500
