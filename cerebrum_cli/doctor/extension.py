"""The command that checks the installation."""

from cerebrum_cli.cli import Command, Extension

EXTENSION = Extension(
    commands=(Command("doctor", "cerebrum_cli.doctor.doctor_command", "DoctorCommand", "Check the whole installation"),)
)
