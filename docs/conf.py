import os
from importlib.metadata import version as version_of
from pkgutil import resolve_name
from typing import Any

project = "pyro-ssvae"
author = "The pyro-ssvae developers"
project_copyright = "the pyro-ssvae developers"
release = version = version_of("pyro-ssvae")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_generated"]

html_theme = "furo"
html_title = "pyro-ssvae"
html_static_path = ["_static"]
html_extra_path = ["llms.txt"]

# Pages. Code cells run at build time, in a temporary folder; an exception in one fails the build.
myst_enable_extensions = ["amsmath", "attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "auto"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 1800
nb_merge_streams = True

# API. Docstrings inherited from torch.nn.Module are not written for this builder.
autoclass_content = "class"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# References to public names of this package must resolve; other packages need their inventories.
nitpicky = True
nitpick_ignore = [  # not public, but named as base class or value of what is
    ("py:class", "pyro_ssvae.distributions.priors.Prior"),
    ("py:class", "pyro_ssvae.distributions.torch_distributions.ScaledNormal"),
    ("py:class", "pyro_ssvae.distributions.torch_distributions.BernoulliByLogits"),
    ("py:class", "pyro_ssvae.estimators.base.DeepEstimator"),
    ("py:class", "pyro_ssvae.objectives.augmentation.Augmentation"),
    ("py:class", "pyro_ssvae.data.features.FeatureSource"),
    ("py:class", "pyro_ssvae.data.labels.LabelSplit"),
]
nitpick_ignore_regex = [("py:.*", r"(?!pyro_ssvae\.).*|.*\._\w+(\..*)?")]

# Links into the documentation of Python, PyTorch and Pyro need the network, so they are asked for.
if os.environ.get("PYRO_SSVAE_DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "pyro": ("https://docs.pyro.ai/en/stable", None),
    }


def resolve_reexport(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Lead `pyro_ssvae.models.m2.M2` to where `pyro_ssvae.M2`, the same object, is described."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("pyro_ssvae."):
        return None
    try:
        wanted = resolve_name(target)
    except (AttributeError, ImportError):
        return None
    domain = env.domains["py"]
    last = target.rpartition(".")[2]
    for name in domain.objects:
        if name.rpartition(".")[2] == last and resolve_name(name) is wanted:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, contnode)
    return None


def offer_folder(app: Any) -> None:
    """Tell the code of pages where the built pages lie, so that one can leave the live page of the explorer there."""
    if app.builder.format == "html":
        os.environ["PYRO_SSVAE_DOCS_OUT"] = str(app.outdir)


def setup(app: Any) -> None:
    """Register the handlers with Sphinx."""
    app.connect("missing-reference", resolve_reexport)
    app.connect("builder-inited", offer_folder)
