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
