import pytest
import torch

from sam_laplace_assets.domain.sam import FrozenSam
from sam_laplace_assets_tests.small_sam import small_sam


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small matrices are slower on several threads, far more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model():
    return small_sam()


@pytest.fixture(scope="session")
def frozen(model):
    return FrozenSam(model)


@pytest.fixture(scope="session")
def made_project(tmp_path_factory):
    """A project of which everything is made; to be read only."""
    from sam_laplace_assets_tests.small_project import SmallProject

    project = SmallProject.new(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        project.use(monkeypatch).refresh()
    return project


@pytest.fixture
def read_only(made_project, monkeypatch):
    """The made project, its settings in force; to be read only."""
    return made_project.use(monkeypatch)


@pytest.fixture
def plain_pictures(monkeypatch):
    """Small white pictures where Matplotlib would take most of a test's time."""
    from sam_laplace_assets_tests.small_project import draw_plainly

    draw_plainly(monkeypatch)


@pytest.fixture
def project(made_project, tmp_path, monkeypatch, plain_pictures):
    """A copy of the made project, its settings in force."""
    return made_project.copy(tmp_path).use(monkeypatch)


@pytest.fixture
def new_project(tmp_path, monkeypatch, plain_pictures):
    """A project of which nothing is made, its settings in force."""
    from sam_laplace_assets_tests.small_project import SmallProject

    return SmallProject.new(tmp_path).use(monkeypatch)
