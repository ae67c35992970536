"""llama.cpp behind the engine's seam: the one folder that imports `llama_cpp`."""
