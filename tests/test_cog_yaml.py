"""cog.yaml and docker-compose.yml against Cog's published rules, as far as they can be checked without its tool."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).parent.parent
TEXT_LIST = {"type": "array", "items": {"type": "string"}}

# Cog's rules for the keys that are not deprecated (facts: Cog, 3).
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["build", "run"],
    "properties": {
        "build": {
            "type": "object",
            "additionalProperties": False,
            "required": ["python_version", "cuda", "sdk_version", "python_requirements"],
            "properties": {
                "gpu": {"const": True},
                "cuda": {"type": "string", "pattern": r"^\d+\.\d+(\.\d+)?$"},
                "cudnn": {"type": "string"},
                "python_version": {"enum": ["3.11", "3.12", "3.13"]},
                "python_requirements": {"type": "string"},
                "system_packages": TEXT_LIST,
                "sdk_version": {"type": "string", "pattern": r"^0\.\d+\.\d+$"},
                "run": TEXT_LIST,
            },
        },
        "environment": {"type": "array", "items": {"type": "string", "pattern": r"^[A-Z][A-Z0-9_]*=.+$"}},
        "run": {"type": "string", "pattern": r"^[\w/]+\.py:[A-Za-z_]\w*$"},
        "image": {"type": "string"},
    },
}
DENIED = re.compile(
    r"(PATH|LD_LIBRARY_PATH|PYTHONPATH|VIRTUAL_ENV|PYTHONUNBUFFERED|LIBRARY_PATH|HF_ENDPOINT|"
    r"HF_HUB_ENABLE_HF_TRANSFER|(R8|REPLICATE|CUDA|NVIDIA|NV|PGET|KUBERNETES)_.*)"
)
CUDA_OF_TORCH = {"2.11.0": {"12.6", "12.8", "12.9", "13.0"}}  # Cog's own compatibility matrix


@pytest.fixture(scope="module")
def config() -> dict:
    return yaml.safe_load((ROOT / "cog.yaml").read_text())


def requirement_lines(name: str) -> list[str]:
    """What Cog reads of a requirements file: it cuts every line at '#', fragments included."""
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line]


def test_the_schema_accepts_it(config):
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(config)] == []


@pytest.mark.parametrize(
    "change",
    [
        {"run": "predict.py"},
        {"predict": "predict.py:Predictor"},
        {"environment": {"A": "b"}},
        {"build": {"gpu": True, "cuda": 12.8, "python_version": "3.12", "python_requirements": "r.txt"}},
    ],
)
def test_the_schema_refuses_what_cog_refuses(config, change):
    assert not Draft7Validator(SCHEMA).is_valid(config | change)


def test_the_predictor_exists(config):
    file, name = config["run"].split(":")
    classes = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.ClassDef)]
    predictor = next(node for node in classes if node.name == name)
    methods = {node.name for node in predictor.body if isinstance(node, ast.FunctionDef)}
    assert {"setup", "predict"} <= methods
    assert "run" not in methods  # both at once is an error for Cog


def test_the_environment_avoids_what_cog_denies(config):
    names = [entry.split("=")[0] for entry in config["environment"]]
    assert [name for name in names if DENIED.fullmatch(name)] == []
    assert DENIED.fullmatch("CUDA_VISIBLE_DEVICES")
    assert len(names) == len(set(names))


def test_every_requirement_is_an_exact_pin_that_survives_cogs_reader(config):
    lines = requirement_lines(config["build"]["python_requirements"])
    assert lines
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9_.\-]+==[0-9][\w.]*(; python_version .*)?", line), line
        if line.startswith("torch"):
            assert ";" not in line, "markers confuse Cog's torch matching"
    dev = requirement_lines("requirements-dev.txt")
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[0-9][\w.]*", line) for line in dev)


def test_torch_cuda_and_sdk_belong_together(config):
    pins = dict(line.split(";")[0].split("==") for line in requirement_lines("requirements.txt"))
    assert config["build"]["cuda"] in CUDA_OF_TORCH[pins["torch"]]
    assert pins["torchaudio"] == pins["torch"]
    assert config["build"]["sdk_version"] == pins["cog"]


def test_the_flash_attention_wheel_fits_and_is_pinned(config):
    (command,) = [line for line in config["build"]["run"] if "flash" in line]
    pins = dict(line.split(";")[0].split("==") for line in requirement_lines("requirements.txt"))
    major_minor = ".".join(pins["torch"].split(".")[:2])
    python_tag = "cp" + config["build"]["python_version"].replace(".", "")
    assert f"torch{major_minor}" in command
    assert f"{python_tag}-{python_tag}-linux_x86_64.whl" in command
    assert "cu" + config["build"]["cuda"].split(".")[0] in command
    assert re.search(r"\.whl#sha256=[0-9a-f]{64}\b", command)
    assert "--no-deps" in command


def test_build_steps_do_not_need_project_files(config):
    """`build.run` runs before the project is copied into the image."""
    names = {path.name for path in ROOT.iterdir()}
    for command in config["build"]["run"]:
        assert not names & set(re.split(r"[\s\"'/]+", command)), command


def test_the_image_leaves_out_what_it_does_not_need():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "/weights", "/tests"} <= set(ignored)
    assert not {"yue_core", "predict.py", "requirements.txt"} & set(ignored)


def test_compose_reserves_a_gpu_keeps_weights_and_restarts():
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["yue"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert service["restart"] == "unless-stopped"
    assert any(volume.split(":")[1] == "/src/weights" for volume in service["volumes"])
    compile(service["healthcheck"]["test"][-1], "healthcheck", "exec")
