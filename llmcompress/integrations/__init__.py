"""Where llmcompress meets other tools in their own terms: today Optimum. Its modules import Optimum when they are."""
