"""What a killed process left in the way of the next one."""

from recipes.core.processes import discard_abandoned_builds


def test_a_build_lock_is_removed_when_nobody_holds_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    held, abandoned = tmp_path / "held" / "lock", tmp_path / "abandoned" / "lock"
    for lock in (held, abandoned):
        lock.parent.mkdir()
        lock.touch()
    with held.open():
        discard_abandoned_builds()
        assert held.exists()
        assert not abandoned.exists()
    assert str(abandoned) in capsys.readouterr().err
    discard_abandoned_builds()
    assert not held.exists()
