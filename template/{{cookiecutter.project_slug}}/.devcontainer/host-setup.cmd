@echo off
rem The twin of host-setup for Windows: the same program, found with the py launcher or as python. `call`, because pyenv
rem and others put a batch file in the place of python.exe.
setlocal
cd /d "%~dp0"
for %%P in ("py -3" "python" "python3") do call :works %%P
if not defined PYTHON goto missing
call %PYTHON% -B -m hostkit setup --project "%~dp0.." %*
exit /b %errorlevel%

:works
if defined PYTHON exit /b 0
call %~1 -c "import sys; sys.exit(sys.version_info < (3, 8))" >nul 2>nul
if not errorlevel 1 set "PYTHON=%~1"
exit /b 0

:missing
echo host-setup: no Python 3.8 or newer was found. Install one: winget install Python.Python.3.12 1>&2
exit /b 1
