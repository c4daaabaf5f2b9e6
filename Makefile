# make run     install into .venv and run the daemon on etc/config.toml
# make check   lint and unit tests, in less than a minute
# make test    install and run all tests, on all processors; ARGS="-k name" and the like go to pytest
# make neighbours  the tests beside real servers, proxies, file systems and browsers
# make test-oldest  the unit tests, and those of request smuggling, with the oldest versions that are allowed
# make test-pythons  the unit tests on the Python of another Debian, as root: PYTHONS="trixie sid"
# make lint    ruff and mypy
# make docs    the documentation in build/docs; warnings are errors
# make docs-links  whether what it links to elsewhere is there
# make man     the manual page, build/man/hmac-file-server.1
# make bench   compare with nginx on this machine; ARGS=--help says more
# make crash   the long form of the power-loss and kill -9 tests
# make soak    the long form of the tests with mixed work, a body of 10 GiB, a thousand slow clients
# make resume  the long form of the tests of uploads that go on: a hundred cuts, and 10,000 begun and left
# make dist    build the wheel and the source distribution into dist/, and try them where pipx installs them
# make deb     build the Debian package into dist/, as root: RELEASE=trixie, noble or (the default) bookworm
# make package-test  install, upgrade, remove and purge it in fresh systems, as root: RELEASES="bookworm trixie"
# make container-test  build the containers' images, and run them with Podman, as root
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RELEASE ?= bookworm

# A test that waits leaves its processor to another one.
TESTERS ?= $(shell expr 2 '*' $$(nproc))
SPHINX = $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env \
    --doctree-dir build/doctrees
PYTEST = $(BIN)/python -m pytest --numprocesses=$(TESTERS) --dist=worksteal

.PHONY: run check test neighbours test-oldest test-pythons lint docs docs-links man bench crash soak resume dist deb \
    package-test container-test clean

run: $(VENV)/installed
	$(BIN)/twist hmac-file-server --config etc/config.toml

check: lint
	$(PYTEST) $(ARGS) tests/test_*.py

test: $(VENV)/tested
	$(PYTEST) $(ARGS)

neighbours: $(VENV)/neighbours
	$(PYTEST) $(ARGS) tests/neighbours

test-oldest:
	@PYTHON="$(PYTHON)" .ci/test-oldest $(ARGS)

test-pythons:
	.ci/other-pythons $(PYTHONS)

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/documented
	$(SPHINX) -b html docs build/docs

docs-links: $(VENV)/documented
	$(SPHINX) -b linkcheck docs build/links

man: $(VENV)/installed
	$(BIN)/python docs/manpage.py build/man

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks $(ARGS)

crash: $(VENV)/tested
	POWER_CUTS=40 CRASHES=200 $(BIN)/python -m pytest -s tests/process/test_power_loss.py tests/process/test_crash.py

soak: $(VENV)/tested
	SOAK_SECONDS=240 BIG_GIB=10 SLOW_CLIENTS=1000 $(BIN)/python -m pytest -s tests/process/test_soak.py \
	    tests/process/test_uploads.py

resume: $(VENV)/tested
	CUTS=100 BEGUN=10000 $(BIN)/python -m pytest -s tests/process/test_resume.py

dist: $(VENV)/tested
	.ci/dist $(BIN)/python

deb: man
	packaging/debian/build $(RELEASE)

package-test: $(VENV)/tested
	.ci/package-test $(BIN)/python $(RELEASES)

container-test: $(VENV)/neighbours
	.ci/container-test $(BIN)/python

$(BIN)/python:
	@PYTHON="$(PYTHON)" .ci/venv "$(VENV)"

$(VENV)/installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/tested: $(VENV)/installed tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

$(VENV)/neighbours: $(VENV)/tested tests/neighbours/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/neighbours/requirements.txt
	@touch $@

$(VENV)/documented: $(VENV)/installed docs/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist var
