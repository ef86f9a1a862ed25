"""The package; settings of tools stand in pyproject.toml, tested versions in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
VERSION: dict[str, str] = {}
exec((HERE / "imprint" / "_version.py").read_text(encoding="utf-8"), VERSION)

setup(
    name="imprint",
    version=VERSION["__version__"],
    description="Forward and local learning for torch: every layer learns while data flows forward",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="the imprint authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["imprint", "imprint.*"]),
    package_data={"imprint": ["py.typed"]},
    zip_safe=False,
    install_requires=["torch>=2.13.0", "numpy", "h5py", "tqdm"],
    extras_require={
        "test": ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "import-linter", "setuptools>=77"],
        "plots": ["matplotlib"],
        "tensorboard": ["tensorboard"],
        "docs": ["matplotlib"],  # the figures
        "bench": [
            "matplotlib",
            "scikit-learn",  # ridge baselines, and the images of make_digits.py
            'braintrace>=0.2.6; python_version >= "3.11"',  # beside etrace; brings jax, which needs that python
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
