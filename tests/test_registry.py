import pytest

from models import build_model


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("decopled", {}, "unknown model 'decopled'; did you mean 'decoupled'?"),
        (
            "xyz",
            {},
            "unknown model 'xyz'; known are decoupled, decoupled_fusion, umdr, umdr_fusion, "
            "r3d_18, mvit_v2_s, swin3d_t",
        ),
        (
            "decoupled",
            {"num_classes": 8, "num_frame": 16},
            "model 'decoupled': unknown option 'num_frame'; did you mean 'num_frames'?",
        ),
        ("decoupled", {"width": 16}, "model 'decoupled': option 'num_classes' is missing"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(name, options, message) -> None:
    with pytest.raises(ValueError) as error:
        build_model(name, **options)
    assert str(error.value) == message
