#!/bin/sh
# A container runs what it was made for: packages start no service.
exit 101
