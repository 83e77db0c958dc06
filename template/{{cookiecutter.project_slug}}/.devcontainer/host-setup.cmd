@echo off
rem The twin of host-setup for Windows: the same program, found with the py launcher or as python.
setlocal
cd /d "%~dp0"
for %%P in ("py -3" "python" "python3") do (
    %%~P -c "import sys; sys.exit(sys.version_info < (3, 8))" >nul 2>nul
    if not errorlevel 1 (
        %%~P -B -m hostkit setup --project "%~dp0.." %*
        exit /b
    )
)
echo host-setup: no Python 3.8 or newer was found. Install one: winget install Python.Python.3.12 1>&2
exit /b 1
