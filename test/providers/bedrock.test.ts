// Bedrock: the real SDK over a real socket against frames made by hand. What every provider must do is in table.ts;
// here are this wire's own ways.

import { bedrockWire } from './bedrock-wire.ts'
import { conformance } from './table.ts'

conformance(bedrockWire)
